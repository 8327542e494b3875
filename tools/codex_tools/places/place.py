"""Read the operator's places, which are other machines for runs, from a TOML file.

    [box]
    ssh = "build-box"        # short for: argv = ["ssh", "-T", "-e", "none", ..., "build-box"]
    max_runs = 8

    [dev]
    argv = ["docker", "exec", "-i", "devbox"]

Callers only name a place. No word of theirs is part of a command line.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from codex_tools.codex.foreign_file import read_foreign

HERE = "here"
"""The name of this machine, which needs no table."""

ANY = "any"
"""The name by which a caller leaves the choice to this server; no place may have it."""

SIZE_LIMIT = 1024 * 1024
"""Most bytes of the file."""

SHARED_ABOVE = 50
"""Most runs of which each has a process of its own that is connected to the Ray cluster.

More runs share one process, whose end is the end of all of them. It took 57 MB for 60 runs, where
the command of the place leads (Ray 2.60).
"""

WORKER = "mcp-server-codex worker"
"""The command that starts a worker, unless the place names another one."""

SSH = ("ssh", "-T", "-e", "none", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=5")
"""ssh without a terminal and without escapes: a `~` in a pack must not end the connection."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")

_HOST = re.compile(r"[A-Za-z0-9_.@:%\[\]][A-Za-z0-9_.@:%\[\]-]{0,254}")

NODE = re.compile(r"[0-9A-Za-z.:_-]{1,253}")
"""What a place may name as the machine of a thread."""

_KEYS = (
    *("ssh", "argv", "ray", "worker", "max_runs", "starts_at_once", "lease_s", "keep_days"),
    *("keep_history_days", "max_tree_mb", "carry", "labels"),
)


class PlacesError(ValueError):
    """The file of places is not as documented."""

    def __init__(self, file: Path, where: str, problem: str) -> None:
        self.file, self.where, self.problem = file, where, problem
        super().__init__(f"{file}: {where}: {problem}" if where else f"{file}: {problem}")


@dataclass(frozen=True, slots=True)
class Ray:
    """How a worker is started on a Ray cluster."""

    python: str
    """The cluster's own Python."""
    address: str = "auto"
    resources: Mapping[str, float] | None = None
    """What a run takes of the cluster; None for one `codex`."""
    token_file: str | None = None
    """The file with the cluster's token, on the machine where `argv` leads."""

    def command(self, program: str, worker: str, *more: str) -> tuple[str, ...]:
        """Return the command that runs the text *program*, which is ray_place.py."""
        resources = json.dumps(dict(self.resources or {"codex": 1}))
        options = ["--address", self.address, "--resources", resources]
        if self.token_file is not None:
            options += ["--token-file", self.token_file]
        return (self.python, "-c", program, *options, *more, worker)


@dataclass(frozen=True, slots=True)
class Place:
    """Where runs may work."""

    name: str
    argv: tuple[str, ...] = ()
    """The command that reaches the place; empty for a worker on this machine."""
    is_ssh: bool = False
    """True if the command passes one text to a shell at the place, as ssh does."""
    worker: str = WORKER
    """The command that starts a worker there, as a shell reads it."""
    ray: Ray | None = None
    max_runs: int = 4
    starts_at_once: int = 8
    lease_s: float = 60.0
    keep_days: float = 7.0
    """Days that a copy, and what belongs to it here and there, is kept after its last use."""
    keep_history_days: float = 365.0
    """Days that this machine keeps the mirror of a thread after its last turn."""
    max_tree_mb: float = 2000.0
    carry: bool = False
    """True if ignored files that `.worktreeinclude` names may leave this machine."""
    labels: tuple[str, ...] = ()
    node: str = ""
    """The machine of a Ray cluster that has the thread to continue; empty for any."""

    @property
    def command(self) -> tuple[str, ...]:
        """The whole command that starts a worker at the place."""
        return self._command("ray_place.py")

    def command_to_run(self) -> tuple[str, ...]:
        """Return `command` with the text of the program that it sends to a Ray cluster."""
        return self._command(_ray_program()) if self.ray is not None else self.command

    def command_to_examine(self, how: Literal["with-token", "without-token"]) -> tuple[str, ...]:
        """Return the command that connects to the Ray cluster, and says what it offers."""
        return self._command(_ray_program(), "--examine", how)

    @property
    def is_shared(self) -> bool:
        """True if all runs at the place share one process there; see `Hub`."""
        return self.ray is not None and self.max_runs > SHARED_ABOVE

    def command_to_share(self) -> tuple[str, ...]:
        """Return the command that starts a process for many runs on a Ray cluster."""
        place = replace(self, worker="", node="")
        return place._command(_ray_program(), "--hub", f"{self.lease_s:g}")

    def _command(self, program: str, *more: str) -> tuple[str, ...]:
        if self.ray is not None:
            node = ("--node", self.node) if self.node else ()
            words = self.ray.command(program, self.worker, *node, *more)
        elif self.is_ssh:
            return (*self.argv, self.worker)
        else:
            words = tuple(shlex.split(self.worker))
        return (*self.argv, shlex.join(words)) if self.is_ssh else (*self.argv, *words)


_DEFAULT = Place("")


def _ray_program() -> str:
    return Path(__file__).with_name("ray_place.py").read_text("utf-8")


def read_places(file: Path) -> dict[str, Place]:
    """Return the places of a file by name, without `here`.

    Raises:
        PlacesError: The file cannot be read, or a table in it is not as documented.
    """
    import tomllib

    try:
        document = tomllib.loads(read_foreign(file, SIZE_LIMIT, follow=True).decode())
    except OSError as error:
        raise PlacesError(file, "", f"it cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PlacesError(file, "", str(error)) from error
    found: dict[str, Place] = {}
    for name, value in document.items():
        if not isinstance(value, dict):
            raise PlacesError(file, name, "must be a table, [name], with the keys of a place")
        if name == ANY or _NAME.fullmatch(name) is None:
            why = "is no name of a place: use up to 40 of a-z, 0-9, _ and -, but not `any`"
            raise PlacesError(file, f"[{name}]", why)
        table = _Table(file, name, cast(dict[str, object], value))
        if name == HERE:
            table.check_keys(("max_runs", "labels"))
        else:
            table.check_keys(_KEYS)
        found[name] = _place(table)
    for name, place in found.items():
        for label in place.labels:
            if label in (ANY, HERE, *found) or _NAME.fullmatch(label) is None:
                why = f"{label!r} must be of a-z, 0-9, _ and -, and no name of a place"
                raise PlacesError(file, f"[{name}] labels", why)
    return found


class _Table:
    """One table of the file; errors name the file, the table and the key."""

    def __init__(self, file: Path, name: str, values: dict[str, object]) -> None:
        self.file, self.name, self.values = file, name, values

    @property
    def has_limit(self) -> bool:
        """False for this machine without a limit of its own: then `--max-runs` holds."""
        return self.name != HERE or "max_runs" in self.values

    def fail(self, key: str, problem: str) -> PlacesError:
        return PlacesError(self.file, f"[{self.name}] {key}", problem)

    def check_keys(self, known: tuple[str, ...]) -> None:
        for key in self.values:
            if key not in known:
                raise self.fail(key, f"is no key here; there are {', '.join(known)}")

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or "\0" in value:
            raise self.fail(key, "must be a text")
        return value

    def words(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise self.fail(key, "must be a list of texts")
        words = cast(list[object], value)
        if not all(isinstance(each, str) and each and "\0" not in each for each in words):
            raise self.fail(key, "must be a list of texts, none of them empty")
        return tuple(cast(list[str], words))

    def number(self, key: str, default: float, least: float, most: float) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.fail(key, "must be a number")
        if not least <= value <= most:
            raise self.fail(key, f"must be from {least:g} to {most:g}, not {value:g}")
        return float(value)

    def count(self, key: str, default: int, most: int = 10_000) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fail(key, "must be a whole number")
        return int(self.number(key, default, 1, most))

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self.fail(key, "must be true or false")
        return value


def _place(table: _Table) -> Place:
    argv = table.words("argv")
    is_ssh = "ssh" in table.values
    if is_ssh:
        if argv:
            raise table.fail("argv", "cannot be given beside ssh; use one of them")
        host = table.text("ssh", "")
        if _HOST.fullmatch(host) is None:
            raise table.fail("ssh", "must be the name of a host, as ~/.ssh/config may define it")
        argv = (*SSH, host)
    worker = table.text("worker", WORKER)
    try:
        words = shlex.split(worker)
    except ValueError as error:
        raise table.fail("worker", f"cannot be read as a command: {error}") from error
    if not words:
        raise table.fail("worker", "must name a command")
    if not argv and table.name != HERE and not table.values.keys() & {"worker", "ray"}:
        raise table.fail("ssh", "is missing: name ssh, argv, ray or worker")
    return Place(
        name=table.name,
        argv=argv,
        is_ssh=is_ssh,
        worker=worker,
        ray=_ray(table),
        max_runs=table.count("max_runs", _DEFAULT.max_runs) if table.has_limit else 0,
        starts_at_once=table.count("starts_at_once", _DEFAULT.starts_at_once),
        lease_s=table.number("lease_s", _DEFAULT.lease_s, 2, 3600),
        keep_days=table.number("keep_days", _DEFAULT.keep_days, 0, 3650),
        keep_history_days=table.number("keep_history_days", _DEFAULT.keep_history_days, 1, 36_500),
        max_tree_mb=table.number("max_tree_mb", _DEFAULT.max_tree_mb, 1, 1_000_000),
        carry=table.flag("carry"),
        labels=table.words("labels"),
    )


def _ray(table: _Table) -> Ray | None:
    value = table.values.get("ray")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise table.fail("ray", "must be a table with python, address, resources, token_file")
    inner = _Table(table.file, f"{table.name}.ray", cast(dict[str, object], value))
    inner.check_keys(("python", "address", "resources", "token_file"))
    python = inner.text("python", "")
    if not python:
        raise inner.fail("python", "is missing: the path of the cluster's own Python")
    resources = inner.values.get("resources")
    if resources is not None and not isinstance(resources, dict):
        raise inner.fail("resources", "must be a table of numbers")
    of_run = _Table(
        table.file, f"{table.name}.ray.resources", cast(dict[str, object], resources or {})
    )
    amounts = {key: of_run.number(key, 0, 0, 1_000_000) for key in of_run.values}
    token_file = inner.text("token_file", "") or None
    return Ray(python, inner.text("address", "auto"), amounts or None, token_file)
