"""`mcp-server-codex doctor`: what is wrong with this set-up, and what cures it.

Nothing but the standard library is imported before it is known where other
packages would come from. What fails here, fails alone.
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

from mcp_server_codex.cli.checks.check import Check, problem, worst
from mcp_server_codex.cli.checks.python import (
    check_packages,
    check_python,
    check_system,
    find_shadows,
    shut_out,
)

if TYPE_CHECKING:
    from mcp_server_codex.cli.checks.context import CheckContext

_USAGE = """\
usage: mcp-server-codex doctor [--json] [OPTION]...

Looks at all that the server needs, tries it out, and says what is wrong and what cures it. The
server's own options, such as --codex-bin and --state-dir, and their variables are taken as well.
Changes nothing but the folder for its own state; no account is used, and nothing is left running.
Exit code 1 if there is a problem.
"""

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}
_REPORT = "Report it as a bug, with what `mcp-server-codex doctor --json` prints."

Checking = Callable[["CheckContext"], "list[Check] | Awaitable[list[Check]]"]


@dataclass(frozen=True, slots=True)
class Step:
    """A check, how long it may take, and what it is good for only with."""

    name: str
    check: Checking
    within_s: float
    needs: Literal["nothing", "codex", "home"] = "nothing"


def run_doctor(arguments: list[str]) -> int:
    """Run the command; return the exit code."""
    if {"--help", "-h"} & {*arguments}:
        sys.stdout.write(_USAGE)
        return 0
    report = Report(as_json="--json" in arguments)
    options = [word for word in arguments if word != "--json"]
    environ = dict(os.environ)
    try:
        report.add(*_begin(environ))
        with report.looking("packages"):
            packages = check_packages()
        report.add(packages)
        if packages.status != "problem":
            import anyio

            if number := anyio.run(_heed_signals, options, environ, report):
                sys.stdout.flush()
                os._exit(128 + number)  # Not to wait for a thread that hangs on a file.
    except KeyboardInterrupt:
        return 130
    code = report.end()
    if report.is_stuck:
        os._exit(code)  # A thread that hangs on a file must not hold the end.
    return code


def _begin(environ: dict[str, str]) -> list[Check]:
    """Look at what is around, and step out of it where it is in the way."""
    checks = [check_system()]
    try:
        Path.cwd()
    except OSError:
        checks.append(problem("system", "The current folder is not there any more.", "cd ~"))
        os.chdir("/")
    shadows = find_shadows(environ)
    shut_out(shadows, environ)
    return [*checks, *check_python(os.environ, shadows)]


class Report:
    """Collects the findings; shows each at once to a person, or all at the end as JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._checks: list[Check] = []
        self.mask: Callable[[str], str] = _mask
        self.is_stuck = False
        """Whether a check is still at work, past its time."""

    def add(self, *checks: Check) -> None:
        """Take in findings, without what is secret in them."""
        for check in checks:
            shown = check.masked(self.mask)
            self._checks.append(shown)
            if not self._as_json:
                _show(shown)

    @contextmanager
    def looking(self, name: str) -> Generator[None]:
        """Show on a terminal what is being looked at."""
        if self._as_json or not sys.stdout.isatty():
            yield
            return
        from rich.console import Console

        with Console().status(f"[dim]{name}[/dim]"):
            yield

    def end(self) -> int:
        """Say how it stands in all; return the exit code."""
        status = worst(self._checks)
        if self._as_json:
            whole = {"status": status, "checks": [asdict(check) for check in self._checks]}
            sys.stdout.write(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
        else:
            counts = [
                f"{count} {word}{'s' if count > 1 else ''}"
                for word in ("problem", "warning")
                if (count := sum(check.status == word for check in self._checks))
            ]
            sys.stdout.write(f"\n{', '.join(counts) or 'All is well'}.\n")
        sys.stdout.flush()
        return 1 if status == "problem" else 0


async def _heed_signals(options: list[str], environ: dict[str, str], report: Report) -> int:
    """Examine until the end, or until a signal, whose number it returns.

    Left to asyncio, Ctrl-C cancels through anyio's shields: the guard of a
    program that is just being started would be killed, and its tree live on.
    """
    import anyio

    came = 0
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                nonlocal came
                async for number in signals:
                    came = came or number
                    tasks.cancel_scope.cancel()

            tasks.start_soon(wait)
            await _examine(options, environ, report)
            tasks.cancel_scope.cancel()
    return came


async def _examine(options: list[str], environ: dict[str, str], report: Report) -> None:
    from codex_tools.rollouts.threads import local_threads
    from mcp_server_codex.cli.checks.context import begin

    examination, checks = begin(options, environ, local_threads().home)
    report.mask = examination.mask
    report.add(*checks)
    skipped: list[str] = []
    for step in _steps():
        if (step.needs == "codex" and examination.codex is None) or (
            step.needs == "home" and not examination.home_is_usable
        ):
            skipped.append(step.name)
        else:
            with report.looking(step.name):
                checks = await _bounded(step, examination, report)
            report.add(*checks)
    if skipped:
        said = f"Not looked at, for the problems above: {', '.join(skipped)}."
        report.add(Check("skipped", "ok", said, details={"skipped": skipped}))


def _steps() -> tuple[Step, ...]:
    from mcp_server_codex.cli.checks.clients import check_clients
    from mcp_server_codex.cli.checks.codex import check_codex
    from mcp_server_codex.cli.checks.login import check_config, check_home
    from mcp_server_codex.cli.checks.requirements import (
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
        Step("policy", check_policy, 10),
        Step("nesting", check_nesting, 20),
        Step("clients", check_clients, 20),
        Step("protocol", check_protocol, 150),
        Step("turn", check_turn, 120, needs="codex"),
    )


async def _bounded(step: Step, examination: CheckContext, report: Report) -> list[Check]:
    """Return what *step* finds, or that it found no end or failed."""
    import anyio.to_thread

    with anyio.move_on_after(step.within_s) as scope:
        try:
            if inspect.iscoroutinefunction(step.check):
                return await step.check(examination)
            check = cast("Callable[[CheckContext], list[Check]]", step.check)
            return await anyio.to_thread.run_sync(check, examination, abandon_on_cancel=True)
        except Exception as error:
            said = f"The check itself fails: {type(error).__name__}: {error}"
            return [problem(step.name, said, _REPORT)]
    assert scope.cancelled_caught
    report.is_stuck = True
    return [problem(step.name, f"No end of it within {step.within_s:g} s.", _REPORT)]


def _mask(text: str) -> str:
    from codex_tools.codex.masking import mask

    return mask(text)


def _show(check: Check) -> None:
    if not sys.stdout.isatty() and not os.environ.get("FORCE_COLOR"):
        cure = f"\n{'':20}→ {check.cure}" if check.cure else ""
        sys.stdout.write(f"{check.status:8} {check.name:10} {check.message}{cure}\n")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, line = Console(highlight=False), Table.grid(padding=(0, 1))
    for width in (8, 10):
        line.add_column(width=width, no_wrap=True)
    line.add_column(overflow="fold")
    colour = _COLOURS[check.status]
    line.add_row(f"[{colour}]{check.status}[/]", escape(check.name), escape(check.message))
    console.print(line)
    if check.cure is not None:
        # Not wrapped, to be copied.
        console.print(f"{'':20}[cyan]→ {escape(check.cure)}[/]", soft_wrap=True)
