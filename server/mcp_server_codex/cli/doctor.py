"""`mcp-server-codex doctor`: check the setup and report each problem with its fix.

Only the standard library is imported until the doctor knows where other packages
come from. A check that fails does not stop the others.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from codex_tools.codex.clean_text import clean_json, indent_after_first
from mcp_server_codex.cli.checks.check import Check, problem, skipped, worst
from mcp_server_codex.cli.checks.python import (
    check_packages,
    check_python,
    check_system,
    find_shadows,
    remove_shadows,
)

if TYPE_CHECKING:
    from mcp_server_codex.cli.checks.context import CheckContext

_USAGE = """\
usage: mcp-server-codex doctor [--json] [--place NAME] [OPTION]...

Checks everything that the server needs, runs a turn with a scripted model, and prints each problem
with its fix. Accepts the server's own options too, such as --codex-bin and --state-dir, and reads
their environment variables. Changes only the server's state folder, uses no account, and leaves no
process running. The exit code is 1 if there is a problem, otherwise 0.

  --json        print all findings as one JSON object
  --place NAME  check only that place of the file --places; starts a worker there and runs no turn
"""

_COLOURS = {"ok": "green", "skipped": "dim", "warning": "yellow", "problem": "bold red"}
_REPORT = "Report this as a bug, with the output of: mcp-server-codex doctor --json"

CheckFunction = Callable[["CheckContext"], "list[Check] | Awaitable[list[Check]]"]


@dataclass(frozen=True, slots=True)
class Step:
    """A check, its time limit, and what it needs from the checks before it."""

    name: str
    check: CheckFunction
    within_s: float
    needs: Literal["nothing", "codex", "home"] = "nothing"


def run_doctor(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    if {"--help", "-h"} & {*arguments}:
        sys.stdout.write(_USAGE)
        return 0
    report = Report(as_json="--json" in arguments)
    options = [word for word in arguments if word != "--json"]
    place = _take_place(options)
    environ = dict(os.environ)
    try:
        report.add(*_check_start(environ))
        with report.showing("packages"):
            packages = check_packages()
        report.add(packages)
        if packages.status != "problem":
            import anyio

            if number := anyio.run(_examine_until_signal, options, environ, report, place):
                sys.stdout.flush()
                os._exit(128 + number)  # Do not wait for a thread that hangs on a file.
    except KeyboardInterrupt:
        return 130
    code = report.end()
    if report.is_stuck:
        os._exit(code)  # Do not wait for a thread that hangs on a file.
    return code


def _take_place(options: list[str]) -> str | None:
    """Remove `--place NAME` from the options, and return the name; None if it is not there."""
    for number, word in enumerate(options):
        if word.startswith("--place="):
            return options.pop(number).partition("=")[2]
        if word == "--place":
            del options[number]
            return options.pop(number) if number < len(options) else ""
    return None


def _check_start(environ: dict[str, str]) -> list[Check]:
    """Check the system, the current folder and Python's path; repair folder and path."""
    checks = [check_system()]
    try:
        Path.cwd()
    except OSError:
        checks.append(problem("system", "The current folder no longer exists.", "cd ~"))
        os.chdir("/")
    shadows = find_shadows(environ)
    remove_shadows(shadows, environ)
    return [*checks, *check_python(os.environ, shadows)]


class Report:
    """Collects the findings; shows each at once to a person, or all at the end as JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._checks: list[Check] = []
        self.mask: Callable[[str], str] = _mask
        self.is_stuck = False
        """True if a check is still running after its time limit."""

    def add(self, *checks: Check) -> None:
        """Add findings with their secrets masked; print them at once unless as JSON."""
        for check in checks:
            shown = check.masked(self.mask)
            self._checks.append(shown)
            if not self._as_json:
                _show(shown)

    @contextmanager
    def showing(self, name: str) -> Generator[None]:
        """Show on a terminal the name of the check that is running."""
        if self._as_json or not sys.stdout.isatty():
            yield
            return
        from rich.console import Console

        with Console().status(f"[dim]{name}[/dim]"):
            yield

    def end(self) -> int:
        """Print the summary, or everything as JSON; return the exit code."""
        status = worst(self._checks)
        if self._as_json:
            result = {"status": status, "checks": [asdict(check) for check in self._checks]}
            text = json.dumps(result, indent=2, ensure_ascii=False)
            sys.stdout.write(clean_json(text) + "\n")
        else:
            counts = [
                f"{count} {word}{'s' if count > 1 else ''}"
                for word in ("problem", "warning", "skipped check")
                if (count := sum(check.status == word.split()[0] for check in self._checks))
            ]
            sys.stdout.write(f"\n{', '.join(counts) or 'No problems, no warnings'}.\n")
        sys.stdout.flush()
        return 1 if status == "problem" else 0


async def _examine_until_signal(
    options: list[str], environ: dict[str, str], report: Report, place: str | None
) -> int:
    """Run all checks; return 0, or the number of the signal that interrupted them.

    If asyncio handled Ctrl-C, it would cancel through anyio's shields. That would
    kill the guard of a program that is just starting, and the program's process
    tree would survive.
    """
    import anyio

    received = 0
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                nonlocal received
                async for number in signals:
                    received = received or number
                    tasks.cancel_scope.cancel()

            tasks.start_soon(wait)
            await _examine(options, environ, report, place)
            tasks.cancel_scope.cancel()
    return received


async def _examine(
    options: list[str], environ: dict[str, str], report: Report, place: str | None
) -> None:
    from codex_tools.rollouts.files import local_home
    from mcp_server_codex.cli.checks.context import begin

    examination, checks = begin(options, environ, local_home())
    report.mask = examination.mask
    report.add(*checks)
    for step in _steps() if place is None else _steps_of(place):
        if step.needs == "codex" and examination.codex is None:
            report.add(skipped(step.name, "Not checked: it needs a Codex that works."))
        elif step.needs == "home" and not examination.home_is_usable:
            report.add(skipped(step.name, "Not checked: it needs a usable codex_home."))
        else:
            with report.showing(step.name):
                checks = await _bounded(step, examination, report)
            report.add(*checks)


def _steps() -> tuple[Step, ...]:
    from mcp_server_codex.cli.checks.clients import check_clients
    from mcp_server_codex.cli.checks.codex import check_codex
    from mcp_server_codex.cli.checks.login import check_config, check_home
    from mcp_server_codex.cli.checks.plugins import check_plugins
    from mcp_server_codex.cli.checks.requirements import (
        check_folders,
        check_git,
        check_nesting,
        check_policy,
        check_state,
    )
    from mcp_server_codex.cli.checks.sandbox import check_sandbox
    from mcp_server_codex.cli.checks.self_test import check_protocol, check_turn

    return (
        Step("codex", check_codex, 60),
        Step("codex_home", check_home, 10),
        Step("config", check_config, 60, needs="home"),
        Step("git", check_git, 60),
        Step("sandbox", check_sandbox, 60, needs="codex"),
        Step("state_dir", check_state, 20),
        Step("folders", check_folders, 10),
        Step("policy", check_policy, 10),
        Step("nesting", check_nesting, 20),
        Step("clients", check_clients, 20),
        Step("plugins", check_plugins, 20),
        Step("protocol", check_protocol, 150),
        Step("turn", check_turn, 120, needs="codex"),
    )


def _steps_of(place: str) -> tuple[Step, ...]:
    from mcp_server_codex.cli.checks.place import check_place

    async def check(context: CheckContext) -> list[Check]:
        return await check_place(context, place)

    return (Step("place", check, 120),)


async def _bounded(step: Step, examination: CheckContext, report: Report) -> list[Check]:
    """Return the findings of *step*, or a problem if the check fails or takes too long."""
    import anyio.to_thread

    with anyio.move_on_after(step.within_s) as scope:
        try:
            if inspect.iscoroutinefunction(step.check):
                return await step.check(examination)
            check = cast("Callable[[CheckContext], list[Check]]", step.check)
            return await anyio.to_thread.run_sync(check, examination, abandon_on_cancel=True)
        except Exception as error:
            message = f"This check itself failed: {type(error).__name__}: {error}"
            return [problem(step.name, message, _REPORT)]
    assert scope.cancelled_caught
    report.is_stuck = True
    return [problem(step.name, f"This check did not end within {step.within_s:g} s.", _REPORT)]


def _mask(text: str) -> str:
    from codex_tools.codex.masking import mask

    return mask(text)


def _show(check: Check) -> None:
    message, cure = indent_after_first(check.message), None
    if check.cure is not None:
        cure = indent_after_first(check.cure)
    if not sys.stdout.isatty() and not os.environ.get("FORCE_COLOR"):
        below = f"\n{'':20}→ {cure}" if cure else ""
        sys.stdout.write(f"{check.status:8} {check.name:10} {message}{below}\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, line = Console(highlight=False, markup=False, emoji=False), Table.grid(padding=(0, 1))
    for width in (8, 10):
        line.add_column(width=width, no_wrap=True)
    line.add_column(overflow="fold")
    line.add_row(Text(check.status, _COLOURS[check.status]), Text(check.name), Text(message))
    if cure is not None and cure.endswith("."):
        line.add_row("", "", Text(f"→ {cure}", "cyan"))
    console.print(line)
    if cure is not None and not cure.endswith("."):
        # A command is not wrapped, so that a person can copy it.
        console.print(Text.assemble(f"{'':20}", (f"→ {cure}", "cyan")), soft_wrap=True)
