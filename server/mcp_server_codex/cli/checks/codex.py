"""The Codex that the server would use: which, from where, and whether it works."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from codex_tools.codex.errors import CodexError, CodexNotFound, CodexUnsupported
from codex_tools.codex.failures import last_words
from codex_tools.codex.masking import quote
from codex_tools.codex.paths import expand_home
from codex_tools.codex.program import Version, bundled_codex, native_binary
from codex_tools.engines.choose import choose_engine
from mcp_server_codex.cli.checks.check import Check, ok, problem, warning
from mcp_server_codex.cli.checks.context import Answer, CheckContext, Codex, ask, update_of
from mcp_server_codex.settings import OPTIONS

NEWEST_TESTED: Version = (0, 171, 0)
"""The newest Codex that this server was tested on."""

_INSTALL = 'npm install -g @openai/codex, or: uv tool install "mcp-server-codex[codex]"'
_PACKAGE = "openai-codex-cli-bin"


async def check_codex(examination: CheckContext) -> list[Check]:
    """Find Codex, ask for its version, keep it for the other checks."""
    place, source, problems = _locate(examination)
    if place is None:
        return problems
    native = native_binary(place)
    is_script = place.resolve().name == "codex.js" or native != place
    if native == place and is_script and shutil.which("node") is None:
        return [
            problem(
                "codex",
                f"{place} ({source}) is npm's script, which needs node; neither node nor the"
                " native binary behind it is there.",
                "npm install -g --include=optional @openai/codex, or install Node.js",
                found_at=str(place),
                origin=source,
            )
        ]
    answer = await ask(native, "--version", env=examination.codex_environment, cwd=Path("/"))
    try:
        if (fault := _fault(answer)) is not None:
            cure = "npm install -g --include=optional @openai/codex" if is_script else _INSTALL
            said = f"{native} ({source}) {fault}"
            return [problem("codex", said, cure, found_at=str(place), origin=source)]
        program = await choose_engine(str(place)).prepare()
    except CodexUnsupported as error:
        message, cure = f"{place} ({source}): {error.message}", update_of(place)
        return [problem("codex", message, cure, found_at=str(place), origin=source)]
    except CodexError as error:
        message = f"{error.message} It came from {source}."
        return [problem("codex", message, _INSTALL, found_at=str(place), origin=source)]
    examination.codex = Codex(program, place)
    about = {
        "path": str(program.path),
        "found_at": str(place),
        "origin": source,
        "version": program.version_text,
        "on_path": [str(each) for each in _on_path()],
        "package": _package_version(),
    }
    said = f"Codex {program.version_text}, {program.path} ({source})."
    said += "".join(f" {remark}" for remark in _remarks(examination.codex, source))
    if program.version is not None and program.version[:2] > NEWEST_TESTED[:2]:
        newest = ".".join(map(str, NEWEST_TESTED))
        return [
            warning(
                "codex",
                f"{said} The newest that this server was tested on is {newest}.",
                "Nothing to do while it works; else: npm install -g @openai/codex@" + newest,
                **about,
            )
        ]
    configured = examination.settings.codex_bin
    if configured and os.sep in configured and not configured.startswith(("/", "~")):
        said += " Its path is relative to the folder in which the client starts the server."
        return [warning("codex", said, f"Write {place} in its place.", **about)]
    return [ok("codex", said, **about)]


def _locate(examination: CheckContext) -> tuple[Path | None, str, list[Check]]:
    configured = examination.settings.codex_bin
    if configured:
        source = _source(examination)
        name = expand_home(configured)
        if (found := shutil.which(name)) is not None:
            return Path(found).absolute(), source, []
        path = Path(name).absolute()
        if path.is_file():
            said = f"{path}, which {source} names, is not executable."
            cure = f"chmod +x {shlex.quote(str(path))}"
        else:
            said = f"{configured}, which {source} names, is no program."
            cure = f"Correct or remove {source} in the client's entry; or: {_INSTALL}"
        return None, source, [problem("codex", said, cure, configured=configured, origin=source)]
    if (found := shutil.which("codex")) is not None:
        return Path(found).absolute(), "from PATH", []
    with suppress(CodexNotFound):
        if (bundled := bundled_codex()) is not None:
            return bundled, f"from the package {_PACKAGE}", []
    for folder in _folders():
        if (path := folder / "codex").is_file():
            said = f"{path} is on PATH but not executable, and there is no other Codex."
            return None, "", [problem("codex", said, f"chmod +x {shlex.quote(str(path))}")]
    said = f"No Codex is on PATH, and the package {_PACKAGE} is not installed."
    return None, "", [problem("codex", said, _INSTALL, path=os.environ.get("PATH", ""))]


def _source(examination: CheckContext) -> str:
    option = next(option for option in OPTIONS if option.flag == "--codex-bin")
    if any(word.partition("=")[0] == option.flag for word in examination.arguments):
        return option.flag
    return next(name for name in option.variables if examination.environ.get(name))


def _fault(answer: Answer) -> str | None:
    """Return what is wrong with the answer to `--version`."""
    said = quote(last_words(answer.stderr) or answer.stdout, 400)
    match answer.returncode:
        case 0:
            return None  # Whether it is Codex's answer is seen by who finds it for the server.
        case None:
            return "does not answer --version; it had to be ended."
        case code if code < 0:
            return f"is ended by signal {-code} at --version. {said}".rstrip()
        case code:
            return f"ends with exit code {code} at --version: {said or 'it says nothing'}"


def _remarks(codex: Codex, source: str) -> Iterator[str]:
    if codex.program.path != codex.place:
        yield f"{codex.place} is a script that starts it; the server does without."
    if codex.program.version is None:
        yield "It is a build from source, which does not know its version."
    if len(others := _on_path()) > 1:
        yield f"There are {len(others)} on PATH: {', '.join(map(str, others))}; the first counts."
    package = _package_version()
    if package is not None and source == "from PATH" and package != codex.program.version_text:
        yield f"The package {_PACKAGE} has {package}, which is not used."


def _on_path() -> list[Path]:
    """Return each Codex on PATH, in its order, without those that are the same program."""
    found: dict[Path, Path] = {}
    for folder in _folders():
        path = folder / "codex"
        if path.is_file() and os.access(path, os.X_OK):
            found.setdefault(native_binary(path).resolve(), path)
    return [*found.values()]


def _folders() -> list[Path]:
    return [Path(each) for each in os.environ.get("PATH", "").split(os.pathsep) if each]


def _package_version() -> str | None:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return None
