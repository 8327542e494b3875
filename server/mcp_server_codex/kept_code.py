"""Keep the code of this project as it is at the start, for modules that are imported later.

An upgrade may replace or remove the files of a running server, and modules of two versions do not
work together. So the server reads the code of all modules that a call may need, 2.4 MB in 6 ms, and
imports them from memory when a call comes. Executing them takes 30 times as long.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source, find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PACKAGES = ("codex_tools", "mcp_server_codex")

_NOT_KEPT = ("__pycache__", "cli", "places")
"""Folders with nothing for calls, or only for the calls of operators that have named places."""


def keep_code() -> None:
    """Read the code of this project, and import what is imported from now on from memory."""
    kept = {each.module: each for package in PACKAGES for each in _read_package(package)}
    sys.meta_path.insert(0, _Finder(kept))


@dataclass(frozen=True, slots=True)
class _Code:
    """The code of a module, and the state of its source file."""

    module: str
    source: str
    mtime: float
    size: int
    path: str
    """The file that was read: the source, or the compiled code if that is of this source."""
    data: bytes


class _Finder:
    """Finds the modules that were read; the other finders find all others."""

    def __init__(self, kept: dict[str, _Code]) -> None:
        self._kept = kept

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load a module; None if it was not read."""
        code = self._kept.get(name)
        if code is None:
            return None
        folder, file = os.path.split(code.source)
        inside = [folder] if file == "__init__.py" else None
        loader = _Loader(code)
        return spec_from_file_location(
            name, code.source, loader=loader, submodule_search_locations=inside
        )


class _Loader(SourceFileLoader):
    """Loads a module as Python does, but from memory."""

    def __init__(self, code: _Code) -> None:
        super().__init__(code.module, code.source)
        self._code = code

    def path_stats(self, path: str) -> dict[str, float]:
        """Return the state of the source file when it was read."""
        return {"mtime": self._code.mtime, "size": self._code.size}

    def get_data(self, path: str) -> bytes:
        """Return what was read; another file is read now."""
        return self._code.data if path == self._code.path else super().get_data(path)

    def set_data(self, path: str, data: ReadableBuffer, *, _mode: int = 0o666) -> None:
        """Write compiled code, unless its source was replaced or removed."""
        try:
            now = Path(self._code.source).stat()
        except OSError:
            return
        if (now.st_mtime, now.st_size) == (self._code.mtime, self._code.size):
            super().set_data(path, data, _mode=_mode)


def _read_package(package: str) -> Iterator[_Code]:
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield from _read_folder(package, folder)


def _read_folder(package: str, folder: str) -> Iterator[_Code]:
    try:
        with os.scandir(folder) as entries:
            found = [*entries]
    except OSError:
        return  # Not a folder, such as a zip file: its own finder finds the modules.
    for entry in found:
        name, dot, suffix = entry.name.partition(".")
        if suffix == "py":
            module = package if name == "__init__" else f"{package}.{name}"
            if (code := _read_module(module, entry)) is not None:
                yield code
        elif not dot and name not in _NOT_KEPT and entry.is_dir():
            yield from _read_folder(f"{package}.{name}", entry.path)


def _read_module(module: str, entry: os.DirEntry[str]) -> _Code | None:
    try:
        state = entry.stat()
        path = cache_from_source(entry.path)
        data = _read(path)
        if data is None or not _is_of(data, state):
            path, data = entry.path, _read(entry.path)
    except (OSError, NotImplementedError):
        return None
    if data is None:
        return None
    return _Code(module, entry.path, state.st_mtime, state.st_size, path, data)


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def _is_of(data: bytes, source: os.stat_result) -> bool:
    """Return True if Python would take *data* for the compiled code of *source*."""
    numbers = (0, int(source.st_mtime), source.st_size)
    header = b"".join((number & 0xFFFFFFFF).to_bytes(4, "little") for number in numbers)
    return data[:16] == MAGIC_NUMBER + header
