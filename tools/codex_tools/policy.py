"""Check turns against the operator's limits, which no caller can lift.

`Policy.check` is the only way from a caller's arguments to a turn. It collects everything that
exceeds the limits, so that a person can be asked once about all of it. Only a person can grant it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codex_tools.approval_check import Answerer, check_approvals
from codex_tools.caller_config import (
    Narrowing,
    checked_config,
    exceeds_search_limit,
    split_config,
)
from codex_tools.codex.budget import Budgets
from codex_tools.codex.errors import InvalidArguments, NotAllowed, TooDeep
from codex_tools.codex.images import check_image
from codex_tools.codex.masking import shorten
from codex_tools.codex.paths import holds, is_same
from codex_tools.codex.program_places import codex_reasons, own_reasons
from codex_tools.codex.sandbox import DANGERS, WIDTH, Isolation, Sandbox
from codex_tools.copy_check import check_copy
from codex_tools.engines.environment import EnvironmentRules

if TYPE_CHECKING:
    # The commands for people import this file for its limits; what a turn needs takes 0.3 s.
    from codex_tools.codex.program import Program
    from codex_tools.engines.config_layers import CodexConfig
    from codex_tools.engines.engine import TurnRequest
    from codex_tools.rollouts.threads import ThreadState
    from codex_tools.turn_options import TurnOptions


PATH_LIMIT = 4096
"""Maximum characters of a path; the limit of Linux."""


@dataclass(frozen=True, slots=True)
class CheckedTurn:
    """A turn whose arguments were checked, and its excesses over the operator's limits."""

    request: TurnRequest
    excesses: tuple[NotAllowed, ...] = ()
    """The turn must not start unless a person allows these once."""
    warnings: tuple[str, ...] = ()
    """Differences between the arguments and the turn that the caller must know."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's limits; made once from the settings."""

    default_sandbox: Sandbox = "read-only"
    max_sandbox: Sandbox = "workspace-write"
    isolation: Isolation = "none"
    """Where a run works whose caller names no isolation."""
    roots: tuple[Path, ...] = ()
    """Folders that may contain cwd, add_dirs and images; empty means any folder."""
    allow_config: tuple[str, ...] = ()
    """Globs of `config` keys that callers may set, in addition to SAFE_CONFIG."""
    timeout_s: float = 3600.0
    max_timeout_s: float = 14400.0
    stall_s: float = 600.0
    budgets: Budgets = field(default_factory=Budgets)
    max_depth: int = 1
    """Maximum number of nested runs: 1 forbids a run that starts another."""
    approvals: Answerer = "never"
    """Who may allow what leaves the sandbox when Codex asks."""
    approve_outside_sandbox: bool = False
    """True if they may although `max_sandbox` is read-only."""
    rules: Literal["ignore", "keep"] = "ignore"
    """`keep` to let Codex load its rules, which can let commands run outside the sandbox."""
    project_config: Literal["committed", "any"] = "committed"
    """`any` to let Codex load `.codex` of a trusted project although it is in no commit."""
    environment: EnvironmentRules = field(default_factory=EnvironmentRules)
    home: Path | None = None
    """The person's home folder."""
    codex_home: Path | None = None
    state_dir: Path | None = None
    cache_dir: Path | None = None
    """The folder of this server's files that can be made again, such as prices."""

    def check(
        self,
        options: TurnOptions,
        program: Program,
        *,
        default_cwd: Path,
        depth: int,
        thread: ThreadState | None = None,
        ephemeral: bool = False,
    ) -> CheckedTurn:
        """Return the turn that *options* ask for, checked against the limits and the disk.

        This is the only place where a turn is decided. It accesses the disk: call it in a worker
        thread.

        Args:
            options: The caller's arguments.
            program: The Codex that will run the turn.
            default_cwd: The folder to work in where neither the caller nor the thread names one.
            depth: Number of runs that this server is nested in.
            thread: The thread to resume. Its folder, sandbox, model and effort are used where
                the caller names none; its sandbox is narrowed to the limit.
            ephemeral: True to keep no rollout.

        Raises:
            TooDeep: The run would be nested too deeply.
            InvalidArguments: A file or folder does not exist, or TOML cannot express a value.
            NotAllowed: The policy forbids something that no person can grant.
        """
        from codex_tools.engines.engine import TurnRequest

        self.check_depth(depth)
        review = _Review(self)
        cwd = review.cwd(options.cwd, default_cwd, thread)
        narrowed = split_config(options.config or {})
        sandbox = review.sandbox(narrowed.sandbox or options.sandbox, thread)
        add_dirs = tuple(review.folder("add_dirs", str(cwd / d)) for d in options.add_dirs or ())
        review.writable("cwd", cwd, sandbox)
        for folder in add_dirs:
            review.writable("add_dirs", folder, sandbox)
        config = checked_config(narrowed.others, self.allow_config)
        layers = review.layers(options, config, cwd)
        isolation = options.isolation or self._isolation_of(thread)
        if isolation == "copy":
            review.warnings += check_copy(
                cwd,
                sandbox,
                options.prompt,
                add_dirs,
                state_dir=self.state_dir,
                guarded=review.guarded_folders(),
            )
        limits, beyond = self.budgets.of_run(
            options.max_tokens, options.max_cost_usd, is_ephemeral=ephemeral
        )
        review.excesses += beyond
        request = TurnRequest(
            program=program,
            prompt=options.prompt,
            cwd=cwd,
            sandbox=sandbox,
            timeout_s=review.timeout(options.timeout_s),
            limits=limits,
            stall_s=self.stall_s,
            thread_id=thread.thread_id if thread is not None else None,
            model=options.model or (thread.model if thread is not None else None),
            reasoning_effort=options.reasoning_effort
            or (thread.reasoning_effort if thread is not None else None),
            profile=options.profile,
            images=tuple(review.image(str(cwd / i)) for i in options.images or ()),
            add_dirs=add_dirs,
            web_search=review.web_search(options.web_search, narrowed.others, layers),
            config=(*config, *review.mcp_servers(options, narrowed, layers)),
            isolation=isolation,
            approvals=check_approvals(
                options.approvals,
                self.approvals,
                sandbox,
                depth,
                is_pinned=self.max_sandbox == "read-only" and not self.approve_outside_sandbox,
            ),
            answered_by="person" if self.approvals == "person" else "caller",
            ask_caller=options.ask_caller,
            skip_git_repo_check=options.skip_git_repo_check,
            ephemeral=ephemeral,
            environment=self.environment,
            keep_rules=self.rules == "keep",
            project_files=review.project_files,
            depth=depth + 1,
        )
        return CheckedTurn(request, tuple(review.excesses), tuple(review.warnings))

    def _isolation_of(self, thread: ThreadState | None) -> Isolation:
        """Return the isolation of a turn whose caller names none: a thread stays in its copy."""
        return "copy" if thread is not None and thread.copy is not None else self.isolation

    def check_apply(self, root: Path, paths: Iterable[Path]) -> tuple[NotAllowed, ...]:
        """Return the excesses of writing *paths* in the project *root*, as a run would there.

        This accesses the disk: call it in a worker thread.
        """
        review = _Review(self)
        review.sandbox("workspace-write", None)
        for path in paths:
            # A link would be refused later: nothing is written through one.
            if review.outside("path", path.parent.resolve() / path.name) is not None:
                break
        review.writable("folder", root, "workspace-write")
        return tuple(review.excesses)

    def check_depth(self, depth: int) -> None:
        """Check that one more run may be nested in the *depth* runs around this server.

        Raises:
            TooDeep: It may not.
        """
        if depth >= self.max_depth:
            raise TooDeep(depth, self.max_depth)

    def check_program(self, request: TurnRequest) -> None:
        """Check that *request* cannot write to the Codex that this or a later run starts.

        Raises:
            NotAllowed: It can, and no root names that folder.
        """
        if request.sandbox != "workspace-write":
            return
        review = _Review(self)
        for folder in (request.cwd, *request.add_dirs):
            for what, place in codex_reasons(folder, request.program):
                review.refuse_writing("the folder", folder, request.sandbox, what, place)
        if review.excesses:
            raise review.excesses[0]

    def projects(self, *others: Path) -> tuple[Path, ...]:
        """Return those of the roots and *others* that do not contain the home folder."""
        home, folders = self.home, (*self.roots, *others)
        return tuple(each for each in folders if home is None or not holds(each, home))

    def folder(self, name: str, path: str) -> Path:
        """Return the resolved path of the folder *path*, given as the argument *name*.

        Raises:
            InvalidArguments: *path* is not a folder.
            NotAllowed: *path* is not a folder, and is outside the roots.
        """
        return _Review(self).folder(name, path)


@dataclass(slots=True)
class _Review:
    """The check of one turn: resolves its values and collects its excesses over the limits."""

    policy: Policy
    excesses: list[NotAllowed] = field(default_factory=list[NotAllowed])
    warnings: list[str] = field(default_factory=list[str])
    image_bytes: int = 0
    """Bytes of the images so far."""
    project_files: Mapping[str, str] | None = None
    """The files in `.codex` of a trusted project, with the ids of their contents."""

    def cwd(self, asked: str | None, default: Path, thread: ThreadState | None) -> Path:
        """Return the folder to work in."""
        if asked is None and thread is not None and thread.cwd is not None:
            if not Path(thread.cwd).is_dir():
                raise InvalidArguments(
                    [f"cwd: the thread's folder {thread.cwd} no longer exists; give another cwd"]
                )
            return self.folder("cwd", thread.cwd)
        if asked is None and not default.is_dir():
            raise InvalidArguments(
                [f"cwd: give a folder; this server's own folder {default} no longer exists"]
            )
        return self.folder("cwd", asked or str(default))

    def sandbox(self, asked: Sandbox | None, thread: ThreadState | None) -> Sandbox:
        """Return the sandbox: *asked*, else the thread's, else the default."""
        limit = self.policy.max_sandbox
        if asked is not None:
            if WIDTH[asked] > WIDTH[limit]:
                self.excesses.append(
                    NotAllowed(
                        f"sandbox {asked}",
                        f"the widest allowed here is {limit}",
                        "--max-sandbox",
                        DANGERS[asked],
                    )
                )
            return asked
        if thread is None or thread.sandbox is None:
            return self._narrowed(self.policy.default_sandbox)
        sandbox = self._narrowed(thread.sandbox)
        if sandbox != thread.sandbox:
            self.warnings.append(
                f"The thread ran with sandbox {thread.sandbox}; the widest allowed is {sandbox}."
            )
        return sandbox

    def _narrowed(self, sandbox: Sandbox) -> Sandbox:
        return min(sandbox, self.policy.max_sandbox, key=WIDTH.__getitem__)

    def timeout(self, asked: float | None) -> float:
        """Return the run's time limit in seconds."""
        most = self.policy.max_timeout_s
        if asked is None:
            return min(self.policy.timeout_s, most)
        if asked > most:
            self.excesses.append(
                NotAllowed(
                    f"timeout_s {asked:g}",
                    f"the maximum is {most:g}",
                    "--max-timeout-s",
                    "Codex could run, and use tokens, for that long",
                )
            )
        return asked

    def folder(self, name: str, path: str) -> Path:
        """Return the resolved path of an existing folder.

        Several versions of Codex do not check that their folder exists.
        """
        return self._existing(name, path, Path.is_dir, "a folder")

    def image(self, path: str) -> Path:
        """Return the resolved path of an image file that Codex can show to a model.

        Codex does not report an image that it cannot read. 0.147 to 0.171 give the model a text in
        its place. 0.60.1 sends it, and then the provider refuses all further turns of the thread.
        """
        within_limits = len(self.excesses)
        file = self._existing("images", path, Path.is_file, "a file")
        if len(self.excesses) > within_limits:
            return file  # A caller must not find out what is in a file outside the roots.
        self.image_bytes = check_image(file, self.image_bytes)
        return file

    def _existing(self, name: str, path: str, exists: Callable[[Path], bool], kind: str) -> Path:
        """Return the resolved path of *path*, so that a later change of a link has no effect."""
        if re.search(r"[\x00-\x1f\x7f]", path):
            raise InvalidArguments([f"{name}: a path must not contain control characters"])
        if len(path) > PATH_LIMIT:
            raise InvalidArguments([f"{name}: a path must have at most {PATH_LIMIT} characters"])
        try:
            path.encode()
            real = Path(path).resolve()
        except (OSError, UnicodeEncodeError, RuntimeError):  # RuntimeError: a loop of links.
            raise InvalidArguments([f"{name}: {shorten(path, 300)!r} is not {kind}"]) from None
        excess = self.outside(name, real)
        try:
            found = exists(real)
        except OSError:  # A name longer than the file system allows.
            found = False
        if not found:
            # Outside the roots the error is the same whether the path exists or not: a caller
            # must not find out what exists there.
            raise excess or InvalidArguments([f"{name}: {shorten(path, 300)!r} is not {kind}"])
        try:
            str(real).encode()
        except UnicodeEncodeError:
            raise InvalidArguments(
                [f"{name}: the path {str(real)!r} is not UTF-8, so no result can contain it"]
            ) from None
        return real

    def outside(self, name: str, path: Path) -> NotAllowed | None:
        """Record and return the excess of a resolved *path* outside all roots, or None."""
        roots = self.policy.roots
        if not roots or any(path.is_relative_to(root) for root in roots):
            return None
        excess = NotAllowed(
            f"{name} {path}",
            f"it is outside the roots {', '.join(map(str, roots))}",
            "--root",
            "Codex could read the files there and send them to its provider",
        )
        self.excesses.append(excess)
        return excess

    def writable(self, name: str, folder: Path, sandbox: Sandbox) -> None:
        """Record an excess if a run with *sandbox* must not write to *folder*.

        A run that can write to Codex's own files, or to this server's, can give the next run any
        right. A run that can write to the whole home folder can do the same with the shell's
        start-up files.
        """
        if sandbox == "read-only":
            return
        own = own_reasons(folder) if sandbox == "workspace-write" else ()
        for what, place in (*self._guarded(folder), *own):
            if self.refuse_writing(name, folder, sandbox, what, place):
                return

    def refuse_writing(
        self, name: str, folder: Path, sandbox: Sandbox, what: str, place: Path
    ) -> bool:
        """Record an excess unless a root names *folder*; return True if it was recorded."""
        roots = self.policy.roots
        if any(is_same(folder, root) or _within(folder, root, place) for root in roots):
            return False
        self.excesses.append(
            NotAllowed(
                f"sandbox {sandbox} in {name} {folder}",
                f"that folder {what}, and no root names it",
                "--root, or to install that program elsewhere" if "program" in what else "--root",
                f"Codex could write to that folder, which {what}",
            )
        )
        return True

    def _guarded(self, folder: Path) -> Iterator[tuple[str, Path]]:
        """Yield each reason why *folder* must not be written to, and the path it protects."""
        ancestors = [folder, *folder.parents]
        if len(ancestors) == 1:
            yield "is the whole file system", folder
        for place, name in self.guarded_folders():
            if place is not None and holds(folder, place):
                yield (f"is {name}" if is_same(folder, place) else f"contains {name}"), place
        for place, name in self.guarded_folders()[1:]:
            if place is not None and any(is_same(each, place) for each in ancestors):
                yield f"is inside {name}", place

    def guarded_folders(self) -> tuple[tuple[Path | None, str], ...]:
        """Return the folders that no run may write to, each with its name; the home folder first.

        A run may write to folders inside the home folder.
        """
        return (
            (self.policy.home, "the home folder"),
            (self.policy.codex_home, "CODEX_HOME"),
            (self.policy.state_dir, "this server's state folder"),
            (self.policy.cache_dir, "this server's cache folder"),
        )

    def layers(
        self, options: TurnOptions, settings: tuple[tuple[str, str], ...], cwd: Path
    ) -> CodexConfig:
        """Return Codex's own configuration; warn of each layer of it that cannot be read."""
        from codex_tools.engines.config_layers import read_config
        from codex_tools.engines.project_trust import files_in

        config = read_config(self.policy.codex_home, options.profile, cwd, settings)
        self.warnings += config.problems
        if config.project is not None and self.policy.project_config == "committed":
            self.project_files = files_in(config.project, self.policy.codex_home)
        return config

    def web_search(
        self, asked: bool | None, settings: Mapping[str, Any], config: CodexConfig
    ) -> bool | None:
        """Return whether to switch web search on or off; None leaves it to Codex's configuration.

        A caller may switch off what the person's configuration allows, but cannot lift its limit.
        0.171.0 lets `-c web_search="live"` lift it, 0.60.1 each key that turns web search on.

        Raises:
            NotAllowed: The caller asks for more than the person's configuration allows, and the
                operator has not allowed the key.
        """
        limit = config.web_search
        if limit is None:
            return asked
        if not (asked or settings):
            # 0.98.0 does not read allowed_web_search_modes.
            return False if limit == "disabled" else asked
        allowed = self.policy.allow_config
        if (excess := exceeds_search_limit(asked, settings, limit, allowed)) is not None:
            raise NotAllowed(
                excess,
                f'Codex\'s own configuration on this machine limits web_search to "{limit}"',
                "web_search in Codex's configuration",
            )
        if asked:
            self.warnings.append('Codex\'s own configuration limits web search to "cached".')
            return None
        return asked

    def mcp_servers(
        self, options: TurnOptions, narrowed: Narrowing, config: CodexConfig
    ) -> tuple[tuple[str, str], ...]:
        """Return the settings that disable the MCP servers that the caller does not want.

        Raises:
            InvalidArguments: The caller names a server that no layer of the configuration has.
        """
        from codex_tools.engines.config_layers import without_mcp_servers

        known = sorted(config.mcp_servers)
        wanted = options.mcp_servers
        asked: set[str] = {*wanted} if isinstance(wanted, list) else set()
        unknown = sorted((asked | narrowed.servers_off) - {*known})
        if unknown:
            names = ", ".join(known) or "none"
            raise InvalidArguments(
                [f"mcp_servers: Codex has no server {unknown[0][:100]!r}; it has: {names}"]
            )
        if wanted == "none" or narrowed.all_servers_off:
            asked = set()
        elif wanted == "all":
            asked = set(known)
        kept = asked - narrowed.servers_off
        off = [name for name in known if name not in kept]
        pairs = without_mcp_servers(config, off)
        if wanted != "all" or narrowed.all_servers_off:
            pairs.append(("features.apps", "false"))
        return tuple(pairs)


def _within(folder: Path, root: Path, place: Path) -> bool:
    """Return True if *root* is inside the guarded *place* and contains *folder*."""
    return folder.is_relative_to(root) and root.is_relative_to(place)
