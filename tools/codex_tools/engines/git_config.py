"""Keep Codex's own git from running the programs that a repository names.

When a turn begins, Codex runs `git status` in its folder, outside the sandbox, also read-only and
in an untrusted project (0.60.1 to 0.171.0). Git then runs the clean and process filters of the
repository's configuration. 0.60.1 and 0.77.0 also run `core.fsmonitor` and hooks. 0.147.0 runs
`git ls-remote` there, which obeys `url.*.insteadOf` and the settings of transports.

Git reads the settings in GIT_CONFIG_PARAMETERS last. There, this module sets each program that the
repository names to the person's own value, or to none. The commands of the model inherit that
variable, so a repository's own filter has no effect there. Git LFS works on, whether the person or
the repository has installed it. GIT_CONFIG_COUNT would need variables named GIT_CONFIG_KEY_n, which
0.60.1 keeps from commands: no git would work there.

Codex itself runs neither `git diff` nor `git commit` (0.60.1 to 0.171.0), so programs for those
(diff.external, textconv, editors, signing) keep their settings.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from codex_tools.codex.errors import InvalidArguments
from codex_tools.codex.paths import find_program, repository_around
from codex_tools.codex.program import Version

HARDENED_GIT: Version = (0, 147, 0)
"""A version from which on Codex runs its own git without hooks, fsmonitor and optional locks.

Seen with 0.147.0, 0.163.0 and 0.171.0; not with 0.60.1 and 0.77.0. The first one may be older.
"""

ANSWER_WITHIN_S = 5.0
"""Seconds that git may take to list settings; it takes 3 ms. An include may name a FIFO."""

PROGRAMS_LIMIT = 500
"""Maximum number of settings replaced; Linux limits the size of an environment."""

REPOSITORIES_LIMIT = 100
"""Maximum number of submodules read, nested ones included."""

_INDEX_LIMIT = 64 * 1024 * 1024
"""Bytes of the largest index searched for submodules; 10,000 files take 1 MB, and 1 ms."""

_PROGRAMS = re.compile(
    r"(filter\..*\.(clean|smudge|process|required)"
    r"|core\.(fsmonitor|sshcommand|gitproxy|askpass|alternaterefscommand)"
    r"|credential\.(.*\.)?helper|protocol\.(ext\.)?allow|remote\..*\.(uploadpack|receivepack)"
    r"|lfs\.extension\..*\.(clean|smudge)|lfs\.customtransfer\..*\.path)"
)
"""Settings that name a program, or allow one, that `git status` or a fetch runs."""

_NEUTRAL = {
    "required": "false",  # With true, git stops at a filter that is empty.
    "sshcommand": "ssh",
    "alternaterefscommand": "true",
    "allow": "never",
    "uploadpack": "git-upload-pack",
    "receivepack": "git-receive-pack",
}
"""Values in place of the repository's own, by the last part of the key; else the empty string.

An empty `core.fsmonitor` is better than "false": git before 2.36 runs a program of that name.
"""

_LFS = {
    "filter.lfs.clean": ("git-lfs clean -- %f", "git lfs clean -- %f"),
    "filter.lfs.smudge": (
        *("git-lfs smudge -- %f", "git-lfs smudge --skip -- %f"),
        *("git lfs smudge -- %f", "git lfs smudge --skip -- %f"),
    ),
    "filter.lfs.process": ("git-lfs filter-process", "git-lfs filter-process --skip"),
    "filter.lfs.required": ("true",),
}
"""The values that `git lfs install --local` writes; they name no program of the repository.

Without them, the model's commits would hold whole files in place of pointers.
"""

_SAFE_ENV = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0"}
_GITLINK = b"\x00\x00\xe0\x00"
"""The mode of a submodule in git's index."""

_Settings = dict[str, list[str]]


def without_repository_programs(
    env: Mapping[str, str], cwd: Path, version: Version | None
) -> dict[str, str]:
    """Return the variables that keep git in *cwd* from running a repository's programs.

    It runs git once, with *env*; more often only in a repository with submodules.

    Args:
        env: The environment that Codex will get.
        cwd: The folder of the turn.
        version: The version of Codex.

    Raises:
        InvalidArguments: The repository names too many programs, or git does not answer.
    """
    variables: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    if version is not None and version < HARDENED_GIT:
        variables["GIT_OPTIONAL_LOCKS"] = "0"  # Else `git status` runs the hook post-index-change.
        if pairs := _counted(env):
            variables["GIT_CONFIG_COUNT"] = "0"
            _set(variables, pairs)
    top = repository_around(cwd)
    git = find_program("git", env.get("PATH", ""), (top,)) if top is not None else None
    if top is None or git is None:
        return variables
    theirs: _Settings = {}
    own: _Settings = {}
    for place in _repositories(git, env, cwd, top):
        _read_settings(git, env, place, theirs, own)
    pairs += _replacements(theirs, own)
    if len(pairs) > PROGRAMS_LIMIT:
        raise InvalidArguments(
            [f"cwd: git's configuration there names more than {PROGRAMS_LIMIT} programs"]
        )
    if "core.gitproxy" in theirs:  # Git takes the first value, not the last.
        variables["GIT_PROXY_COMMAND"] = own.get("core.gitproxy", [""])[0]
    _set(variables, pairs)
    return variables


def _counted(env: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the settings in GIT_CONFIG_COUNT and its variables, which a person may set."""
    count = env.get("GIT_CONFIG_COUNT", "")
    names = range(int(count) if re.fullmatch(r"[0-9]{1,4}", count) else 0)
    pairs = [(env.get(f"GIT_CONFIG_KEY_{n}"), env.get(f"GIT_CONFIG_VALUE_{n}")) for n in names]
    return [(key, value) for key, value in pairs if key is not None and value is not None]


def _set(variables: dict[str, str], pairs: Sequence[tuple[str, str]]) -> None:
    if pairs:
        variables["GIT_CONFIG_PARAMETERS"] = " ".join(_quoted(key, value) for key, value in pairs)


def _quoted(key: str, value: str) -> str:
    """Return a setting as git itself writes it; git before 2.31 knows only the first form."""
    parts = [f"{key}={value}"] if "=" not in key else [key, value]
    return "=".join("'" + part.replace("'", "'\\''").replace("!", "'\\!'") + "'" for part in parts)


def _replacements(theirs: _Settings, own: _Settings) -> Iterator[tuple[str, str]]:
    """Yield the keys and values to set, from those of the repository and the person's own."""
    helpers = False
    for key, values in theirs.items():
        if key.startswith("credential."):
            helpers = True
        elif key == "protocol.allow":
            if "protocol.ext.allow" not in theirs:
                yield "protocol.ext.allow", own.get("protocol.ext.allow", ["never"])[-1]
        elif key.startswith("lfs."):
            yield key, own.get(key, ["cat" if key.startswith("lfs.extension.") else "false"])[-1]
        elif not all(value in _LFS.get(key, ()) for value in values):
            last = key.rpartition(".")[2]
            yield key, own.get(key, [_NEUTRAL.get(last, "")])[-1]
    if helpers:
        yield "credential.helper", ""  # Drops all helpers before it, whatever address they are for.
        for key, values in own.items():
            if key.startswith("credential."):
                yield from ((key, value) for value in values)


def _read_settings(
    git: str, env: Mapping[str, str], place: Path, theirs: _Settings, own: _Settings
) -> None:
    """Add the settings in force in *place*: the repository's to *theirs*, others to *own*."""
    answer = _ask(git, env, place, ("config", "-z", "--show-scope", *_REGEXP))
    if answer is not None:
        scopes, entries = answer.split("\0")[:-1:2], answer.split("\0")[1::2]
        for scope, entry in zip(scopes, entries, strict=True):
            _add(own if scope in ("system", "global", "command") else theirs, [entry])
        return
    # Git before 2.26 does not know --show-scope.
    for scope, settings in (("--local", theirs), ("--system", own), ("--global", own)):
        entries = _ask(git, env, place, ("config", "-z", scope, "--includes", *_REGEXP)) or ""
        _add(settings, entries.split("\0")[:-1])


_REGEXP = ("--get-regexp", f"^{_PROGRAMS.pattern}$")


def _add(settings: _Settings, entries: Iterable[str]) -> None:
    for entry in entries:
        key, line_feed, value = entry.partition("\n")
        settings.setdefault(key, []).append(value if line_feed else "true")


def _repositories(git: str, env: Mapping[str, str], cwd: Path, top: Path) -> Iterator[Path]:
    """Yield *cwd* and the submodules into which git descends from there."""
    yield cwd
    ahead, seen = [top], 1
    while ahead:
        place = ahead.pop()
        if not _may_hold_submodules(place):
            continue
        answer = _ask(git, env, place, ("rev-parse", "--show-toplevel"))
        listing = _ask(git, env, place, ("ls-files", "-z", "--stage", "--full-name", ":/"))
        for line in (listing or "").split("\0"):
            if not line.startswith("160000 "):
                continue
            folder = Path((answer or str(place)).rstrip("\n"), line.partition("\t")[2])
            if os.path.lexists(folder / ".git") and folder.is_dir():
                seen += 1
                if seen > REPOSITORIES_LIMIT:
                    raise InvalidArguments(
                        [f"cwd: the repository has more than {REPOSITORIES_LIMIT} submodules"]
                    )
                yield folder
                ahead.append(folder)


def _may_hold_submodules(top: Path) -> bool:
    """Return True if the index of the work tree *top* may hold a submodule; runs no git."""
    git_dir = top / ".git"
    if not git_dir.is_dir():
        named = re.match(rb"gitdir: *([^\n]+)", _content(git_dir, 8192) or b"")
        if named is None:
            return False
        git_dir = top / os.fsdecode(named[1])
    index = _content(git_dir / "index", _INDEX_LIMIT)
    if index is None:
        return os.path.lexists(git_dir / "index")
    return _GITLINK in index or b"link" in index[-4096:]  # "link" names a shared index.


def _content(file: Path, limit: int) -> bytes | None:
    """Return the bytes of a regular file; None if there is none or it has more than *limit*."""
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:  # noqa: PTH123
            data = (
                opened.read(limit + 1) if stat.S_ISREG(os.fstat(opened.fileno()).st_mode) else b""
            )
    except OSError:
        return None
    return data if 0 < len(data) <= limit else None


def _ask(git: str, env: Mapping[str, str], place: Path, arguments: Sequence[str]) -> str | None:
    """Return git's answer; None if it refuses.

    Raises:
        InvalidArguments: It does not answer in time.
    """
    safe = () if arguments[0] == "config" else ("-c", "core.fsmonitor=")
    try:
        done = subprocess.run(
            [git, "--no-pager", *safe, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=place,
            env={**env, **_SAFE_ENV},
            timeout=ANSWER_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidArguments(
            [f"cwd: git did not read its configuration in {place} within {ANSWER_WITHIN_S:g} s"]
        ) from None
    except OSError:
        return None
    # 1: no such setting. 128: the repository is broken or another user's; Codex's git stops, too.
    return os.fsdecode(done.stdout) if done.returncode in (0, 1) else None
