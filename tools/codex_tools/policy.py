"""What the operator allows; no caller can lift it.

A request is checked in one place, by a Review, before anything starts. What
goes beyond the limits is collected, so that a person can be asked once about
all of it; nobody else can grant it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from codex_tools.codex.errors import InvalidArguments, NotAllowed
from codex_tools.codex.sandbox import WIDTH, Sandbox
from codex_tools.codex.toml import to_toml
from codex_tools.engines.environment import EnvironmentRules

SAFE_CONFIG = (
    "model_reasoning_effort",
    "model_reasoning_summary",
    "model_verbosity",
    "hide_agent_reasoning",
    "show_raw_agent_reasoning",
    "web_search",
    "tools.web_search",
)
"""The `config` keys that cannot widen what a run may do."""

CONFIG_LIMIT = 32_000
"""Characters of all `config` values; Linux takes 131,071 bytes for an argument."""

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")

_DANGERS: dict[Sandbox, str] = {
    "read-only": "Codex could read your files",
    "workspace-write": "Codex could change and delete files in that folder and run programs there",
    "danger-full-access": (
        "Codex could change or delete any of your files, run any program and use the network,"
        " with nothing to hold it back"
    ),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's limits; made once from the settings."""

    default_sandbox: Sandbox = "read-only"
    max_sandbox: Sandbox = "workspace-write"
    roots: tuple[Path, ...] = ()
    """Where cwd, add_dirs and images may lie; none means anywhere."""
    allow_config: tuple[str, ...] = ()
    """Globs of `config` keys that callers may set besides SAFE_CONFIG."""
    timeout_s: float = 3600.0
    max_timeout_s: float = 14400.0
    stall_s: float = 600.0
    max_depth: int = 1
    """How many runs may be inside each other: 1 forbids one that starts another."""
    environment: EnvironmentRules = field(default_factory=EnvironmentRules)
    home: Path | None = None
    """The person's own folder."""
    codex_home: Path | None = None
    state_dir: Path | None = None


@dataclass(slots=True)
class Review:
    """One request before the policy: says what shall really hold, collects what is too much."""

    policy: Policy
    excesses: list[NotAllowed] = field(default_factory=list[NotAllowed])

    def sandbox(self, asked: Sandbox | None) -> Sandbox:
        """Return the sandbox for a thread without one: *asked*, or the default."""
        if asked is None:
            return self.narrowed(self.policy.default_sandbox)
        if WIDTH[asked] > WIDTH[self.policy.max_sandbox]:
            self.excesses.append(
                NotAllowed(
                    f"sandbox {asked}",
                    f"the widest allowed here is {self.policy.max_sandbox}",
                    "--max-sandbox",
                    _DANGERS[asked],
                )
            )
        return asked

    def narrowed(self, sandbox: Sandbox) -> Sandbox:
        """Return *sandbox*, or the ceiling where that is narrower."""
        return min(sandbox, self.policy.max_sandbox, key=WIDTH.__getitem__)

    def timeout(self, asked: float | None) -> float:
        """Return a run's wall clock in seconds."""
        most = self.policy.max_timeout_s
        if asked is None:
            return min(self.policy.timeout_s, most)
        if asked > most:
            self.excesses.append(
                NotAllowed(
                    f"timeout_s {asked:g}",
                    f"the most is {most:g}",
                    "--max-timeout-s",
                    "Codex could be at work, and use tokens, for that long",
                )
            )
        return asked

    def inside(self, name: str, path: Path) -> NotAllowed | None:
        """See whether *path*, links resolved already, lies inside a root; return what is not so."""
        roots = self.policy.roots
        if not roots or any(path.is_relative_to(root) for root in roots):
            return None
        excess = NotAllowed(
            f"{name} {path}",
            f"it lies outside the roots {', '.join(map(str, roots))}",
            "--root",
            "Codex could read what lies there and send it to its provider",
        )
        self.excesses.append(excess)
        return excess

    def writable(self, name: str, folder: Path, sandbox: Sandbox) -> None:
        """See whether a run of *sandbox* may have *folder* to write in.

        One that can write to Codex's own files, or to this server's, can give
        the next run any right it likes; one that can write to the whole home
        folder can do so by the shell's start-up files.
        """
        if sandbox == "read-only":
            return
        for what, place in self._guarded(folder):
            if not any(_same(folder, root) or _within(folder, root, place) for root in self.roots):
                self.excesses.append(
                    NotAllowed(
                        f"sandbox {sandbox} in {name} {folder}",
                        f"{what}, and no root names it",
                        "--root",
                        f"Codex could write there: it {what}",
                    )
                )
                return

    @property
    def roots(self) -> tuple[Path, ...]:
        """The operator's roots."""
        return self.policy.roots

    def _guarded(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """Yield why *folder* is no place to write in, and the place that makes it so."""
        ancestors = [folder, *folder.parents]
        if len(ancestors) == 1:
            yield "is the whole file system", folder
        for place, name in (
            (self.policy.home, "the home folder"),
            (self.policy.codex_home, "CODEX_HOME"),
        ):
            if place is not None and _holds(folder, place):
                yield (f"is {name}" if _same(folder, place) else f"holds {name}"), place
        for place, name in (
            (self.policy.codex_home, "CODEX_HOME"),
            (self.policy.state_dir, "this server's state folder"),
        ):
            if place is not None and any(_same(each, place) for each in ancestors):
                yield f"lies in {name}", place

    def config(self, config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """Return *config* as pairs of key and TOML value.

        Raises:
            NotAllowed: A key is neither safe nor allowed by the operator; no
                person can see through what a key might do, so none is asked.
            InvalidArguments: A key or value has no form in TOML.
        """
        pairs: list[tuple[str, str]] = []
        for key, value in config.items():
            if _KEY.fullmatch(key) is None:
                raise InvalidArguments([f"config: {key[:100]!r} is not a dotted key"])
            allowed = self.policy.allow_config
            if key not in SAFE_CONFIG and not any(fnmatchcase(key, glob) for glob in allowed):
                safe = ", ".join(SAFE_CONFIG)
                raise NotAllowed(
                    f"config key {key[:100]}", f"callers may set only {safe}", "--allow-config"
                )
            try:
                pairs.append((key, to_toml(value)))
            except (ValueError, TypeError) as error:
                raise InvalidArguments([f"config.{key[:100]}: {error}"]) from None
        if sum(len(value) for _, value in pairs) > CONFIG_LIMIT:
            raise InvalidArguments([f"config: has over {CONFIG_LIMIT:,} characters"])
        return tuple(pairs)


def _same(one: Path, other: Path) -> bool:
    """Return whether two paths are one folder, by whatever mount or case they are named."""
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


def _holds(folder: Path, place: Path) -> bool:
    return any(_same(folder, each) for each in (place, *place.parents))


def _within(folder: Path, root: Path, place: Path) -> bool:
    """Return whether *root* names a part of the guarded *place* in which *folder* lies."""
    return folder.is_relative_to(root) and root.is_relative_to(place)


def ask_for(excesses: Sequence[NotAllowed], cwd: Path, prompt: str) -> str:
    """Return the question that lets a person grant *excesses* this once, in plain words."""
    lines = ["Another agent asks Codex for more than this server may allow by itself:"]
    for excess in excesses:
        lines.append(f"- {_plain(excess.what, 500)} ({_plain(excess.limit, 500)}).")
        lines.append(f"  Why that is dangerous: {_plain(excess.danger, 500)}.")
    lines += [
        f"Where: {_plain(str(cwd), 500)}",
        f'The task begins: "{_plain(prompt, 300)}"',
        "Accept to allow it this once; anything else refuses it.",
    ]
    return "\n".join(lines)


def _plain(text: str, limit: int) -> str:
    """Return *text* on one line, with nothing that could make it look like another one."""
    words = " ".join(text[:limit].split())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    return shown + ("…" if len(text) > limit else "")
