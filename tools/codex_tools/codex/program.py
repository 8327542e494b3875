"""Find the Codex program, its version and the options that it accepts.

npm installs `codex` as a node script that starts the native binary. This server runs the native
binary itself. That saves one process and about 0.15 s per call, and signals reach Codex (the
script of 0.60.1 exits 0 on SIGTERM).
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream, Process

from codex_tools.codex.errors import CodexNotFound, CodexUnsupported
from codex_tools.codex.failures import last_words, start_hint
from codex_tools.codex.masking import quote
from codex_tools.codex.paths import expand_home, find_program
from codex_tools.codex.workers import on_disk

Version = tuple[int, int, int]

OLDEST: Version = (0, 60, 1)
"""The oldest Codex that this server is tested with and accepts."""

CUMULATIVE_USAGE: Version = (0, 79, 0)
"""First version whose `turn.completed.usage` counts the whole thread after a resume.

Measured: 0.77.0 reports the turn, 0.79.0 the thread; npm has no 0.78.
"""

PAGINATED_THREADS: Version = (0, 147, 0)
"""First version that knows `history_mode` in a rollout.

An older Codex appends lines without ordinals to a "paginated" rollout. No Codex can resume that
rollout afterwards (seen with 0.60.1 on a thread of 0.169.0).
"""

PACKED_THREADS: Version = (0, 163, 0)
"""A version from which on Codex reads compressed rollouts; the first one may be older.

Seen with 0.163.0; 0.60.1 ends with "stream did not contain valid UTF-8".
"""

PROFILE_FILES: Version = (0, 134, 0)
"""First version that reads a profile from `CODEX_HOME/NAME.config.toml`.

From there on, Codex ignores the name of a profile without such a file (seen with 0.147.0 to
0.171.0). Earlier ones read `[profiles.NAME]` and refuse a name without it (seen with 0.60.1).
"""

WHOLE_SNAPSHOT: tuple[Version, Version] = ((0, 98, 0), (0, 163, 0))
"""First version, and end (excluded), where a shell snapshot restores excluded variables.

When Codex starts, it takes a snapshot of a shell's whole environment. Each command begins with
that snapshot, whatever shell_environment_policy excludes. Seen with 0.120.0 and 0.147.0 once the
snapshot was ready. Not seen with 0.98.0, where the snapshot is off by default, nor with 0.163.0
and 0.171.0. The exact versions between these are not known, so the range is the widest possible.
"""

UNRECORDED_TIER: tuple[Version, Version] = ((0, 99, 0), (0, 163, 0))
"""First version, and end (excluded), that sends a service tier and does not record it.

0.120.0 and 0.147.0 send it without a record. 0.60.1, 0.77.0 and 0.98.0 send none; 0.163.0 and
0.171.0 record it. The exact versions are not known, so the range is the widest possible.
"""

APP_SERVER_WRITES: tuple[Version, Version] = ((0, 78, 0), (0, 147, 0))
"""First version, and end (excluded), whose `codex app-server` changes the user's config.toml.

At its first start in a home with threads, it writes `personality = "pragmatic"` there. Seen with
0.98.0 and 0.120.0; `codex exec` does not. Not seen with 0.77.0, 0.147.0, 0.163.0 and 0.171.0. The
exact versions between these are not known, so the range is the widest possible.
"""

_FLAG_SINCE: dict[str, Version] = {
    "--approve-for-me": (0, 147, 0),  # Perhaps earlier; 0.120.0 refuses it.
    "--ephemeral": (0, 99, 0),
    "--ignore-rules": (0, 147, 0),  # Perhaps earlier; 0.120.0 refuses it.
    "exec fork": (0, 163, 0),  # Perhaps earlier; 0.147.0 lacks it.
    "exec review": (0, 98, 0),  # Perhaps earlier; 0.60.1 lacks it.
}

_ANSWER_WITHIN_S = 20.0

_SMALLEST_CODEX = 10_000_000
"""Bytes that Codex's own binary has at least: 39 MB for 0.60.1, 315 MB for 0.171.0.

A smaller program with its name is a launcher (proto's shim, Nix's wrapper).
"""

_MAGIC = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
"""First bytes of an executable: ELF, Mach-O, Mach-O for two processors."""

_VERSION = re.compile(r"^codex-cli ((\d+)\.(\d+)\.(\d+)\S*)\s*$", re.MULTILINE)
"""The answer to --version, alike from 0.60.1 to 0.171.0 and from npm's script.

A wrapper may print other lines before it. `codex 3.2.1` is another program of that name.
"""


@dataclass(frozen=True, slots=True)
class Program:
    """An installed Codex program and its abilities."""

    path: Path
    version: Version | None
    """None for a build from source, which has no version number."""
    version_text: str
    """The version as `codex --version` prints it, without the name; never empty."""
    search_path: str | None
    """Folder to put first on PATH (Codex up to 0.120 expects ripgrep there)."""
    flags: frozenset[str]
    """The accepted ones among the flags that some versions lack."""
    found: Path | None = None
    """The path at which it was found: a link, or a script that starts it."""

    @property
    def usage_is_cumulative(self) -> bool:
        """True if usage after a resume counts the whole thread."""
        return self.version is None or self.version >= CUMULATIVE_USAGE

    @property
    def knows_paginated_threads(self) -> bool:
        """True if Codex can resume a thread with "paginated" history without damage."""
        return self.version is None or self.version >= PAGINATED_THREADS

    @property
    def knows_packed_threads(self) -> bool:
        """True if Codex can resume a thread whose rollout is compressed."""
        return self.version is None or self.version >= PACKED_THREADS

    @property
    def reads_profile_files(self) -> bool:
        """True if a profile is a file of its own, and a missing one is ignored silently."""
        return self.version is None or self.version >= PROFILE_FILES

    @property
    def keeps_whole_snapshot(self) -> bool:
        """True if the shell snapshot restores variables that commands must not get."""
        since, before = WHOLE_SNAPSHOT
        return self.version is None or since <= self.version < before

    @property
    def records_service_tier(self) -> bool:
        """True if the rollout names the service tier of each request that has one."""
        since, before = UNRECORDED_TIER
        return self.version is None or not since <= self.version < before

    @property
    def writes_config(self) -> bool:
        """True if its app-server may change the user's config.toml when it starts."""
        since, before = APP_SERVER_WRITES
        return self.version is not None and since <= self.version < before

    def need(self, flag: str) -> None:
        """Check that this Codex accepts *flag*.

        Raises:
            CodexUnsupported: This version does not know *flag*.
        """
        if flag not in self.flags:
            since = ".".join(map(str, _FLAG_SINCE[flag]))
            raise CodexUnsupported(
                f"{flag}, which needs Codex {since} or later",
                self.version_text,
                "Leave that argument out, or update Codex: npm install -g @openai/codex.",
            )


NOT_ASKED = Program(Path("/"), None, "unknown", None, frozenset())
"""Stands for the program of a turn whose folder has not been checked yet."""

_File = tuple[Path, int, int]
"""Path of a program, with its size and modification time (ns)."""

_known: dict[_File, Program] = {}
_examining = anyio.Lock()

_Shim = tuple[_File, Path]
"""A wrapper or shim, and the folder in which it is asked."""

_answers: dict[_Shim, tuple[float, Program]] = {}
"""The latest answer of each, with its time, while calls wait for it."""
_asking: dict[_Shim, anyio.Lock] = {}


async def find_codex(
    configured: str | None,
    cwd: Path,
    environ: Callable[[], Mapping[str, str]] | None = None,
    untrusted: Sequence[Path] = (),
) -> Program:
    """Return the Codex to use: *configured*, else the one on PATH, else the Python package's.

    The answer of Codex's own binary to `--version` is cached until the file changes. Any other
    program is asked in *cwd*, because mise, asdf, volta and wrappers choose a version by folder.
    Calls that come meanwhile share its answer.

    Args:
        configured: The configured Codex; None to look for one.
        cwd: The folder that Codex is to work in. A program that is no Codex binary runs there.
        environ: Function that returns the environment for such a program; it may read files.
        untrusted: Folders that runs may write to; no program in them or in *cwd* is taken from
            PATH, because a run may have put it there.

    Raises:
        CodexNotFound: No Codex was found, or the program does not answer.
        CodexUnsupported: The Codex found is older than the oldest supported version.
    """
    found, key, is_codex = await on_disk(_binary, configured, (cwd, *untrusted))
    if not is_codex:
        return replace(await _ask_shim(key, cwd, environ), found=found)
    async with _examining:
        if key not in _known:
            _known[key] = await _examine(key[0], Path("/"), None)
    return replace(_known[key], found=found)


async def _ask_shim(
    file: _File, cwd: Path, environ: Callable[[], Mapping[str, str]] | None
) -> Program:
    shim, since = (file, cwd), time.monotonic()
    lock = _asking.setdefault(shim, anyio.Lock())
    try:
        async with lock:
            if shim in _answers and _answers[shim][0] >= since:
                return _answers[shim][1]
            env = None if environ is None else await on_disk(environ)
            program = await _examine(file[0], cwd, env)
            _answers[shim] = (time.monotonic(), program)
            return program
    finally:
        if not lock.statistics().tasks_waiting:
            _asking.pop(shim, None)
            _answers.pop(shim, None)


def _binary(configured: str | None, untrusted: Sequence[Path]) -> tuple[Path, _File, bool]:
    """Return what was found, the program behind npm's script, and True if that is a Codex binary.

    Raises:
        CodexNotFound: No Codex was found, or its file cannot be read.
    """
    found = _locate(configured, untrusted)
    path = native_binary(found)
    try:
        stat = path.stat()
        is_codex = stat.st_size >= _SMALLEST_CODEX and _is_native(path)
    except OSError as error:
        raise CodexNotFound(f"{path} cannot be used: {error.strerror}.") from error
    return found, (path, stat.st_size, stat.st_mtime_ns), is_codex


def _is_native(path: Path) -> bool:
    """Return True if *path* is an executable for this machine and bears Codex's name.

    The shims of mise, volta and aqua are links to their own binaries, which have other names.
    """
    real = path.resolve()
    with real.open("rb") as file:
        return file.read(4) in _MAGIC and real.name.startswith("codex")


def _locate(configured: str | None, untrusted: Sequence[Path]) -> Path:
    search_path = os.environ.get("PATH", os.defpath)
    # The root of the file system holds all programs, and nothing may write to it unasked.
    untrusted = [real for each in untrusted if (real := each.resolve()) != Path("/")]
    if configured:
        if "/" in configured or configured.startswith("~"):
            found = shutil.which(expand_home(configured))
        else:
            found = find_program(configured, search_path, untrusted)
        if found is None:
            raise CodexNotFound(f"The configured Codex, {configured}, is not a program.")
        return Path(found).absolute()
    found = find_program("codex", search_path, untrusted)
    if found is not None:
        return Path(found)
    bundled = bundled_codex()
    skipped = shutil.which("codex")
    if bundled is None and skipped is not None:
        raise CodexNotFound(
            f"{Path(skipped).absolute()} is the only Codex on PATH, but runs may write to its"
            " folder, or PATH names that folder by a relative path.",
            "Install Codex elsewhere (npm install -g @openai/codex), or set --codex-bin or"
            " CODEX_BIN to that path to trust it.",
        )
    if bundled is None:
        raise CodexNotFound(
            "No Codex CLI was found on PATH, and openai-codex-cli-bin is not installed."
        )
    return bundled


def bundled_codex() -> Path | None:
    """Return the Codex of the optional package openai-codex-cli-bin; None if not installed.

    Raises:
        CodexNotFound: The package is installed, but its binary is missing.
    """
    try:
        package = importlib.import_module("codex_cli_bin")
    except ImportError:
        return None
    try:
        return Path(str(package.bundled_codex_path()))
    except OSError as error:
        raise CodexNotFound(str(error)) from error


def native_binary(path: Path) -> Path:
    """Return the native binary that npm's node script *path* starts; any other *path* unchanged.

    *path* may also be the link that npm makes to the script, or pnpm's shell script.
    """
    script = _node_script(path)
    if script is None:
        return path
    package = script.parent.parent
    triple, platform_package = _platform()
    for vendor in (
        package / "node_modules" / "@openai" / platform_package / "vendor",
        package.parent / platform_package / "vendor",
        package / "vendor",
    ):
        for place in ("bin", "codex"):
            native = vendor / triple / place / "codex"
            if os.access(native, os.X_OK) and native.is_file():
                return native.resolve()
    return path


def _node_script(path: Path) -> Path | None:
    real = path.resolve()
    if real.name == "codex.js":
        return real
    try:
        with real.open("rb") as file:
            text = file.read(8192)
    except OSError:
        return None
    if not text.startswith(b"#!"):
        return None
    found = re.search(rb'"\$basedir/([^"]*@openai/codex/bin/codex\.js)"', text)
    if found is None:
        return None
    script = real.parent / os.fsdecode(found[1])
    return script.resolve() if script.is_file() else None


def _platform() -> tuple[str, str]:
    arm = platform.machine().lower() in ("arm64", "aarch64")
    cpu, short = ("aarch64", "arm64") if arm else ("x86_64", "x64")
    if sys.platform == "darwin":
        return f"{cpu}-apple-darwin", f"codex-darwin-{short}"
    return f"{cpu}-unknown-linux-musl", f"codex-linux-{short}"


async def _examine(path: Path, cwd: Path, env: Mapping[str, str] | None) -> Program:
    answer = await _ask(path, cwd, env, "--version")
    found = _VERSION.search(answer.stdout)
    if found is None:
        said = answer.described()
        raise CodexNotFound(
            f"{path} does not answer --version as Codex does: {said}", start_hint(said)
        )
    # A build from source calls itself 0.0.0: only its help says which flags it accepts.
    version = (int(found[2]), int(found[3]), int(found[4]))
    if version == (0, 0, 0):
        text = (await _ask(path, cwd, env, "exec", "--help")).stdout
        flags = frozenset(each for each in _FLAG_SINCE if each.replace("exec", "\n ") in text)
    elif version >= OLDEST:
        flags = frozenset(flag for flag, since in _FLAG_SINCE.items() if version >= since)
    else:
        oldest = ".".join(map(str, OLDEST))
        raise CodexUnsupported(
            f"features that this server needs (Codex {oldest} or later)",
            found[1],
            "Update Codex: npm install -g @openai/codex.",
        )
    search_path = path.parent.parent / "path"
    return Program(
        path=path,
        version=None if version == (0, 0, 0) else version,
        version_text=found[1],
        search_path=str(search_path) if await on_disk(search_path.is_dir) else None,
        flags=flags,
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    returncode: int
    stdout: str
    stderr: str

    def described(self) -> str:
        """Return the exit code and both outputs in one sentence, with secrets masked."""
        parts = [f"exit code {self.returncode}"]
        for name, text in (("stdout", self.stdout), ("stderr", last_words(self.stderr))):
            parts.append(f"{name}: {quote(text.strip(), 600) or 'nothing'}")
        return "; ".join(parts)


async def _ask(path: Path, cwd: Path, env: Mapping[str, str] | None, *arguments: str) -> _Answer:
    try:
        with anyio.fail_after(_ANSWER_WITHIN_S):
            return await _run([str(path), *arguments], cwd, env)
    except TimeoutError:
        raise CodexNotFound(
            f"{path} did not answer {arguments[0]} within {_ANSWER_WITHIN_S:g} s."
        ) from None
    except OSError as error:
        raise CodexNotFound(f"{path} cannot be run in {cwd}: {error.strerror}.") from error


async def _start(argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None) -> Process:
    # Shielded: if its start were cancelled half-way, only the first process would be killed.
    with anyio.CancelScope(shield=True):
        return await anyio.open_process(
            argv, stdin=subprocess.DEVNULL, cwd=cwd, env=env, start_new_session=True
        )
    raise AssertionError("a shielded scope is never left without a result")


async def _run(argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None) -> _Answer:
    """Run *argv* to its end; when cancelled, kill it with all processes of its session."""
    process = await _start(argv, cwd, env)
    texts = ["", ""]

    async def read(number: int, stream: ByteReceiveStream | None) -> None:
        if stream is not None:
            data = b"".join([chunk async for chunk in stream])
            texts[number] = data.decode("utf-8", "replace")

    async with process:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, 0, process.stdout)
                tasks.start_soon(read, 1, process.stderr)
            return _Answer(await process.wait(), *texts)
        except BaseException:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
