"""Find Codex: the native binary, its version, what it can do.

npm installs `codex` as a node script that starts the native binary. We run the
binary itself: one process and about 0.15 s less per call, and signals arrive
(the script of 0.60.1 exits 0 on SIGTERM).
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import anyio

from codex_tools.codex.errors import CodexNotFound, CodexUnsupported
from codex_tools.codex.paths import expand_home
from codex_tools.codex.workers import on_disk

Version = tuple[int, int, int]

OLDEST: Version = (0, 60, 1)
"""The oldest Codex that this bridge is tested on."""

CUMULATIVE_USAGE: Version = (0, 79, 0)
"""Since here `turn.completed.usage` counts the whole thread after a resume.

Measured: 0.77.0 reports the turn, 0.79.0 the thread (no 0.78 on npm).
"""

PAGINATED_THREADS: Version = (0, 147, 0)
"""Since here Codex knows `history_mode` in a rollout.

An older one appends lines without ordinals to a "paginated" rollout, which no
Codex can resume afterwards (seen with 0.60.1 on a thread of 0.169.0).
"""

PACKED_THREADS: Version = (0, 163, 0)
"""Since here, or some version before, Codex reads rollouts that were compressed.

Seen with 0.163.0; 0.60.1 ends with "stream did not contain valid UTF-8".
"""

WHOLE_SNAPSHOT: tuple[Version, Version] = ((0, 98, 0), (0, 163, 0))
"""From here to before there, or a version between, commands get back what they shall not have.

Codex takes a snapshot of a shell's whole environment when it starts and lets
each command begin with it, whatever shell_environment_policy excludes: seen with
0.120.0 and 0.147.0 once the snapshot was ready, not with 0.98.0, where it is
off by default, nor with 0.163.0 and 0.171.0.
"""

_FLAG_SINCE: dict[str, Version] = {"--ephemeral": (0, 99, 0)}

_ANSWER_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Program:
    """A Codex that can be started."""

    path: Path
    version: Version | None
    """None for a build from source, which does not know its version."""
    version_text: str
    """As `codex --version` prints it, without the name; never empty."""
    search_path: str | None
    """A folder that goes first on PATH (Codex up to 0.120 expects ripgrep there)."""
    flags: frozenset[str]
    """Which of the flags that not every version knows it accepts."""

    @property
    def usage_is_cumulative(self) -> bool:
        """Whether usage after a resume counts the whole thread."""
        return self.version is None or self.version >= CUMULATIVE_USAGE

    @property
    def knows_paginated_threads(self) -> bool:
        """Whether it can resume a thread whose history is "paginated" unharmed."""
        return self.version is None or self.version >= PAGINATED_THREADS

    @property
    def knows_packed_threads(self) -> bool:
        """Whether it can resume a thread whose rollout is compressed."""
        return self.version is None or self.version >= PACKED_THREADS

    @property
    def keeps_whole_snapshot(self) -> bool:
        """Whether its snapshot of the environment defeats what is kept from commands."""
        since, before = WHOLE_SNAPSHOT
        return self.version is None or since <= self.version < before

    def need(self, flag: str) -> None:
        """Insist on *flag*.

        Raises:
            CodexUnsupported: This version does not know it.
        """
        if flag not in self.flags:
            since = ".".join(map(str, _FLAG_SINCE[flag]))
            raise CodexUnsupported(
                f"{flag}, which Codex knows since {since}",
                self.version_text,
                "Leave that argument out, or update Codex: npm install -g @openai/codex.",
            )


_known: dict[tuple[Path, int, int], Program] = {}
_asking = anyio.Lock()


async def find_codex(configured: str | None) -> Program:
    """Return the Codex to use: *configured*, else on PATH, else the Python package.

    What a binary answered to `--version` is kept until the file changes.

    Raises:
        CodexNotFound: There is none, or it does not answer.
        CodexUnsupported: It is older than the oldest supported one.
    """
    key = await on_disk(_binary, configured)
    path, _, _ = key
    async with _asking:
        if key not in _known:
            _known[key] = await _examine(path)
    return _known[key]


def _binary(configured: str | None) -> tuple[Path, int, int]:
    """Return the native binary with its size and modification time (ns).

    Raises:
        CodexNotFound: There is none.
    """
    path = native_binary(_locate(configured))
    try:
        stat = path.stat()
    except OSError as error:
        raise CodexNotFound(f"{path} cannot be used: {error.strerror}.") from error
    return path, stat.st_size, stat.st_mtime_ns


def _locate(configured: str | None) -> Path:
    if configured:
        found = shutil.which(expand_home(configured))
        if found is None:
            raise CodexNotFound(f"The configured Codex, {configured}, is not a program.")
        return Path(found).absolute()
    found = shutil.which("codex")
    if found is not None:
        return Path(found).absolute()
    bundled = bundled_codex()
    if bundled is None:
        raise CodexNotFound(
            "No Codex CLI was found on PATH, and openai-codex-cli-bin is not installed."
        )
    return bundled


def bundled_codex() -> Path | None:
    """Return the Codex of the package openai-codex-cli-bin, an extra of this one, if it is there.

    Raises:
        CodexNotFound: The package is there, but not its binary.
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
    """Return the native binary behind *path* where that is npm's node script.

    Covers the link that npm makes and the shell script that pnpm makes. Any
    other program is returned as it is.
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


async def _examine(path: Path) -> Program:
    answer = await _ask(path, "--version")
    found = re.search(r"codex\S* ((\d+)\.(\d+)\.(\d+)\S*)", answer)
    if found is None:
        raise CodexNotFound(
            f"{path} does not answer --version as Codex does, but with: {answer[:200] or 'nothing'}"
        )
    # Builds from source call themselves 0.0.0: what they can do stands in their help only.
    version = (int(found[2]), int(found[3]), int(found[4]))
    if version == (0, 0, 0):
        text = await _ask(path, "exec", "--help")
        flags = frozenset(flag for flag in _FLAG_SINCE if flag in text)
    elif version >= OLDEST:
        flags = frozenset(flag for flag, since in _FLAG_SINCE.items() if version >= since)
    else:
        oldest = ".".join(map(str, OLDEST))
        raise CodexUnsupported(
            f"what this server needs (Codex {oldest} or later)",
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


async def _ask(path: Path, *arguments: str) -> str:
    try:
        with anyio.fail_after(_ANSWER_WITHIN_S):
            result = await anyio.run_process(
                [path, *arguments], stdin=subprocess.DEVNULL, check=False, start_new_session=True
            )
    except TimeoutError:
        raise CodexNotFound(
            f"{path} did not answer {arguments[0]} within {_ANSWER_WITHIN_S:g} s."
        ) from None
    except OSError as error:
        raise CodexNotFound(f"{path} cannot be run: {error.strerror}.") from error
    return result.stdout.decode("utf-8", "replace").strip()
