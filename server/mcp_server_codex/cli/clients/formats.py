"""The formats of configuration files: read, change one place, and nothing else."""

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
    """How a kind of configuration file is read and changed."""

    name: str
    parse: Callable[[str], Json]
    """Raises a ConfigError, with the line, for what is none."""
    _put: Callable[[str, Sequence[str], Any], str]
    _remove: Callable[[str, Sequence[str]], str]

    def put(self, text: str, path: Sequence[str], value: Any) -> str:
        """Return *text* with *value* at *path*.

        Raises:
            ConfigError: It is broken, or laid out so that it cannot be changed safely.
        """
        wanted = _with(self.parse(text), path, value)
        return self._sure(self._put(text, path, value), [wanted])

    def remove(self, text: str, path: Sequence[str]) -> str:
        """Return *text* without what is at *path*.

        Raises:
            ConfigError: It is broken, or laid out so that it cannot be changed safely.
        """
        wanted = [_without(self.parse(text), path)]
        for length in range(len(path) - 1, 0, -1):
            # In TOML, what holds tables goes with the last of them.
            if not at_path(wanted[0], path[:length]):
                wanted.append(_without(wanted[0], path[:length]))
        return self._sure(self._remove(text, path), wanted)

    def _sure(self, changed: str, wanted: list[Json]) -> str:
        """Return *changed* if it means what is wanted: what a person wrote is not guessed at."""
        try:
            if self.parse(changed) in wanted:
                return changed
        except ConfigError:
            pass
        raise ConfigError("it is laid out so that it cannot be changed safely; edit it by hand")


JSON = Format("JSON", partial(jsonc.parse, comments=False), jsonc.put, jsonc.remove)

JSONC = Format("JSON with comments", partial(jsonc.parse, comments=True), jsonc.put, jsonc.remove)

TOML = Format("TOML", toml_text.parse, toml_text.put, toml_text.remove)


def at_path(data: Any, path: Sequence[str]) -> Any:
    """Return what is at *path* in *data*; None if there is nothing."""
    for name in path:
        if not isinstance(data, dict):
            return None
        data = cast("Json", data).get(name)
    return data


def _with(data: Any, path: Sequence[str], value: Any) -> Json:
    if not isinstance(data, dict):
        raise ConfigError(f"what should hold {path[0]!r} is no object")
    table = cast("Json", data)
    inside = _with(table.get(path[0], {}), path[1:], value) if len(path) > 1 else value
    return table | {path[0]: inside}


def _without(data: Json, path: Sequence[str]) -> Json:
    if len(path) == 1:
        return {name: each for name, each in data.items() if name != path[0]}
    return data | {path[0]: _without(data[path[0]], path[1:])}
