"""Give one program its own `/etc/codex`, in a private mount namespace; the machine keeps its own.

async with connect(mode, codex, lab, machine={"requirements.toml": "..."}) as client:
subprocess.run([*machine_prefix(lab.root, {"config.toml": "..."}), codex, "exec", ...])
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

_SCRIPT = """\
set -eu
real=$1 files=$2
shift 2
mount --rbind /etc "$real"
mount -t tmpfs -o mode=755 etc /etc
for each in "$real"/* "$real"/.[!.]*; do
  case "${each##*/}" in codex) ;; *) ln -s "$each" /etc/ ;; esac
done
mkdir /etc/codex
cp "$files"/* /etc/codex/
exec "$@"
"""
"""Makes /etc a folder of links to the real one, so that nothing is ever created there."""


def machine_prefix(place: Path, files: Mapping[str, str]) -> list[str]:
    """Return the words that start a program in which /etc/codex holds *files*, and no others.

    Skips the test where that needs rights that it lacks.

    Args:
        place: Folder of the test, for what the mounts need.
        files: Contents by name, such as `config.toml`, `requirements.toml`, `managed_config.toml`.
    """
    if problem := _why_not():
        pytest.skip(f"/etc/codex needs a private mount namespace: {problem}")
    folder = Path(tempfile.mkdtemp(prefix="etc-", dir=place))
    real, texts = folder / "real", folder / "files"
    real.mkdir()
    texts.mkdir()
    for name, text in files.items():
        (texts / name).write_text(text, encoding="utf-8")
    return [*_words(real, texts)]


def _words(real: Path, files: Path) -> tuple[str, ...]:
    unshare = ("unshare", "--mount", "--propagation", "private")
    return (*unshare, "sh", "-c", _SCRIPT, "sh", str(real), str(files))


@cache
def _why_not() -> str:
    """Return why this machine allows no private mounts; empty if it does."""
    if os.geteuid() != 0:
        return "the tests do not run as root"
    with tempfile.TemporaryDirectory() as place:
        real, files = Path(place, "real"), Path(place, "files")
        real.mkdir()
        files.mkdir()
        (files / "x").touch()
        try:
            tried = subprocess.run(
                [*_words(real, files), "cat", "/etc/codex/x"], capture_output=True, text=True
            )
        except OSError as error:
            return str(error)
        return tried.stderr.strip() or "the mounts failed" if tried.returncode else ""
