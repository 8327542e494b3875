"""Check the Codex that the server would use: its path, its origin, its version."""

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
from mcp_server_codex.cli.checks.context import (
    WITHIN_LIMITS,
    Answer,
    CheckContext,
    Codex,
    ask,
    update_of,
)
from mcp_server_codex.settings import OPTIONS

NEWEST_TESTED: Version = (0, 171, 0)
"""The newest Codex version that this server was tested with."""

_INSTALL = 'npm install -g @openai/codex, or: uv tool install "mcp-server-codex[codex]"'
_PACKAGE = "openai-codex-cli-bin"


async def check_codex(context: CheckContext) -> list[Check]:
    """Find Codex, ask it for its version, and store it in *context* for the other checks."""
    place, source, problems = _locate(context)
    if place is None:
        return problems
    native = native_binary(place)
    is_script = place.resolve().name == "codex.js" or native != place
    if native == place and is_script and shutil.which("node") is None:
        return [
            problem(
                "codex",
                f"{place} ({source}) is npm's script, which needs node. Neither node nor Codex's"
                " native binary was found.",
                "npm install -g --include=optional @openai/codex, or install Node.js",
                found_at=str(place),
                origin=source,
            )
        ]
    answer = await ask(native, "--version", env=context.codex_environment, cwd=Path("/"))
    try:
        if (fault := _fault(answer)) is not None:
            cure = "npm install -g --include=optional @openai/codex" if is_script else _INSTALL
            said = f"{native} ({source}) {fault}"
            return [problem("codex", said, cure, found_at=str(place), origin=source)]
        rules = context.settings.policy.environment
        program = await choose_engine(str(place)).prepare(Path("/"), rules)
    except CodexUnsupported as error:
        message, cure = f"{place} ({source}): {error.message}", update_of(place)
        return [problem("codex", message, cure, found_at=str(place), origin=source)]
    except CodexError as error:
        message = f"{error.message} ({source})"
        return [problem("codex", message, _INSTALL, found_at=str(place), origin=source)]
    context.codex = Codex(program, place)
    about = {
        "path": str(program.path),
        "found_at": str(place),
        "origin": source,
        "version": program.version_text,
        "on_path": [str(each) for each in _on_path()],
        "package": _package_version(),
    }
    said = f"Codex {program.version_text}, {program.path} ({source})."
    said += "".join(f" {remark}" for remark in _remarks(context.codex, source))
    if program.version is not None and program.version[:2] > NEWEST_TESTED[:2]:
        newest = ".".join(map(str, NEWEST_TESTED))
        return [
            warning(
                "codex",
                f"{said} This server was tested with Codex up to {newest} only.",
                f"If runs fail, install that version: npm install -g @openai/codex@{newest}",
                **about,
            )
        ]
    configured = context.settings.codex_bin
    if configured and os.sep in configured and not configured.startswith(("/", "~")):
        said += f" {configured} is relative to the folder in which a client starts the server."
        cure = f"Name the absolute path in the client's entry: {place}"
        return [warning("codex", said, cure, **about)]
    return [ok("codex", said, **about)]


def _locate(context: CheckContext) -> tuple[Path | None, str, list[Check]]:
    configured = context.settings.codex_bin
    if configured:
        source = _source(context)
        name = expand_home(configured)
        if (found := shutil.which(name)) is not None:
            return Path(found).absolute(), source, []
        path = Path(name).absolute()
        if path.is_file():
            message = f"{source} names {path}, which is not executable."
            cure = f"chmod +x {shlex.quote(str(path))}"
        else:
            message = f"{source} names {configured}, but there is no such program."
            cure = f"Correct or remove {source} in the client's entry. To install Codex: {_INSTALL}"
        finding = problem("codex", message, cure, configured=configured, origin=source)
        return None, source, [finding]
    if (found := shutil.which("codex")) is not None:
        return Path(found).absolute(), "from PATH", []
    with suppress(CodexNotFound):
        if (bundled := bundled_codex()) is not None:
            return bundled, f"from the package {_PACKAGE}", []
    for folder in _folders():
        if (path := folder / "codex").is_file():
            message = f"{path} is on PATH but is not executable, and no other Codex was found."
            return None, "", [problem("codex", message, f"chmod +x {shlex.quote(str(path))}")]
    message = f"codex is not on PATH, and the package {_PACKAGE} is not installed."
    return None, "", [problem("codex", message, _INSTALL, path=os.environ.get("PATH", ""))]


def _source(context: CheckContext) -> str:
    option = next(option for option in OPTIONS if option.flag == "--codex-bin")
    if any(word.partition("=")[0] == option.flag for word in context.arguments):
        return option.flag
    return next(name for name in option.variables if context.environ.get(name))


def _fault(answer: Answer) -> str | None:
    """Return the fault in the answer to `--version`, or None."""
    output = quote(last_words(answer.stderr) or answer.stdout, 400)
    match answer.returncode:
        case 0:
            return None  # The next step checks whether the output is Codex's.
        case None:
            return f"did not answer --version {WITHIN_LIMITS} and was stopped."
        case code if code < 0:
            return f"was killed by signal {-code} while it answered --version. {output}".rstrip()
        case code:
            return f"answered --version with exit code {code}: {output or 'no output'}"


def _remarks(codex: Codex, source: str) -> Iterator[str]:
    if codex.program.path != codex.place:
        yield f"{codex.place} is a script that starts this program; the server does not need it."
    if codex.program.version is None:
        yield "It was built from source and does not know its version."
    if len(others := _on_path()) > 1:
        yield f"PATH holds {len(others)} of them: {', '.join(map(str, others))}. The first is used."
    package = _package_version()
    if package is not None and source == "from PATH" and package != codex.program.version_text:
        yield f"The package {_PACKAGE} holds Codex {package}, which is not used."


def _on_path() -> list[Path]:
    """Return each Codex on PATH in search order; the same program is listed once."""
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
