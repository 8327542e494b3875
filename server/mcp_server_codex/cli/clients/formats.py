"""Read a configuration file and change one value in its text, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.clients import jsonc, toml_text
from mcp_server_codex.cli.clients.config_error import ConfigError


@dataclass(frozen=True, slots=True)
class Format:
    """A file format: functions that parse a text and change one value in it."""

    name: str
    parse: Callable[[str], Json]
    """Returns the data of a text; raises a ConfigError with the line if the text is invalid."""
    _put: Callable[[str, Sequence[str], Any], str]
    _remove: Callable[[str, Sequence[str]], str]

    def put(self, text: str, path: Sequence[str], value: Any) -> str:
        """Return *text* with *value* at *path*.

        Raises:
            ConfigError: *text* is invalid, or its layout cannot be changed safely.
        """
        wanted = _with(self.parse(text), path, value)
        return self._checked(self._put(text, path, value), [wanted])

    def remove(self, text: str, path: Sequence[str]) -> str:
        """Return *text* without the value at *path*.

        Raises:
            ConfigError: *text* is invalid, or its layout cannot be changed safely.
        """
        wanted = [_without(self.parse(text), path)]
        for length in range(len(path) - 1, 0, -1):
            # In TOML, a parent table disappears together with its last child table.
            if not at_path(wanted[0], path[:length]):
                wanted.append(_without(wanted[0], path[:length]))
        return self._checked(self._remove(text, path), wanted)

    def _checked(self, changed: str, wanted: list[Json]) -> str:
        """Return *changed* if its data is one of *wanted*.

        A person's file is not changed by guesswork, so any other result is an error.
        """
        try:
            if self.parse(changed) in wanted:
                return changed
        except ConfigError:
            pass
        raise ConfigError("this file's layout cannot be changed safely; edit the file by hand")


JSON = Format("JSON", partial(jsonc.parse, comments=False), jsonc.put, jsonc.remove)

JSONC = Format("JSON with comments", partial(jsonc.parse, comments=True), jsonc.put, jsonc.remove)

TOML = Format("TOML", toml_text.parse, toml_text.put, toml_text.remove)


def at_path(data: Any, path: Sequence[str]) -> Any:
    """Return the value at *path* in *data*, or None if there is none."""
    for name in path:
        if not isinstance(data, dict):
            return None
        data = cast("Json", data).get(name)
    return data


def _with(data: Any, path: Sequence[str], value: Any) -> Json:
    if not isinstance(data, dict):
        raise ConfigError(
            f"cannot add {path[0]!r}: the value that should contain it is not an object"
        )
    table = cast("Json", data)
    inside = _with(table.get(path[0], {}), path[1:], value) if len(path) > 1 else value
    return table | {path[0]: inside}


def _without(data: Json, path: Sequence[str]) -> Json:
    if len(path) == 1:
        return {name: each for name, each in data.items() if name != path[0]}
    return data | {path[0]: _without(data[path[0]], path[1:])}
