"""Drive real MCP clients with a real Codex behind the server; write what was seen into a table.

`make clients` fetches each client once, without an account, and plays six cases with each: a short
run that is resumed, a failing run, a run of 90 s, a run in the background, Ctrl-C, and the end of
the client by SIGKILL. Both models are scripted. The model of the client may use only what the
client has shown it. ARGS="opencode LangChain" plays some of them and replaces their rows;
ARGS="--patience 1800 opencode" finds out, up to those seconds, how long a call may last.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from codex_tools.engines.guard import processes
from mcp_server_codex.cli.scripted_model import Patch, Shell, api_error, do, say
from support.codex_versions import PINNED, real_codex
from support.lab import Lab, commands, environment, marked, open_lab
from support.real_clients import CLIENT_FOLDERS, CLIENTS, IF_NAMED, Desk, RealClient, node_path
from support.scripted_messages import Use
from support.scripted_talk import CodexTalk, MessagesTalk, Move, NextMove, ScriptedTalk, Talk

TOP = Path(__file__).parent.parent
PAGE = TOP / "docs" / "clients.md"
BEGIN, END = "<!-- measured by `make clients` -->\n", "<!-- what was measured ends here -->"

AT_ONCE = 3
"""Clients that are driven at the same time; they wait more than they work."""

WITHIN_S = 300.0
"""Seconds within which a client must have ended, in addition to the pauses of the case."""

TRIES = 2
"""On a busy machine, a client may begin before the server has listed its tools (Cline 3.0.65)."""

GONE_WITHIN_S = 20.0
"""Seconds within which nothing of a run may be left."""

RUN, THREAD = re.compile(r"run_[0-9a-f]{16}"), re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-\w{12}")
SLEEP, SLEEPERS = "(setsid sleep 602 &); sleep 600", {"sleep 600", "sleep 602"}
REFUSED = "Unsupported value: 'turbo' is not supported with this model."

Faults = list[str]


@dataclass
class Play:
    """One case with one client, and what was seen."""

    client: RealClient
    lab: Lab
    talk: Talk
    argv: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict[str, str])

    def start(self) -> subprocess.Popen[bytes]:
        """Start the client in a process group of its own, as a shell does."""
        with (self.lab.root / "client.log").open("wb") as log:
            return subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.lab.project,
                env=self.env,
                start_new_session=True,
            )

    def finish(self, pause_s: float = 0.0) -> Faults:
        """Start the client, wait for its end, and return what is wrong with it."""
        process = self.start()
        try:
            process.wait(WITHIN_S + pause_s)
        except subprocess.TimeoutExpired:
            return ["the client did not end"]
        if not self.talk.told:
            return [f"no call arrived: {self.last_words()}"]
        return []

    def last_words(self) -> str:
        text = (self.lab.root / "client.log").read_text(errors="replace")
        return " ".join(text.split())[-300:]

    def left(self) -> list[str]:
        """Return the command lines of the run that still exist, not those of the client."""
        found = commands(str(self.lab.root))
        return [c for c in found if not any(folder in c for folder in CLIENT_FOLDERS)]

    def gone(self) -> tuple[float, Faults]:
        """Wait until nothing is left; return the seconds, and what is left in the end."""
        begun = time.monotonic()
        while left := self.left():
            if time.monotonic() - begun > GONE_WITHIN_S:
                return GONE_WITHIN_S, [f"left: {[command[:120] for command in left]}"]
            time.sleep(0.05)
        return time.monotonic() - begun, []

    def clear(self) -> None:
        """Kill what the case has started and has not ended, such as a daemon of the client."""
        for pid in marked(str(self.lab.root)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def missing(told: str, *parts: str) -> Faults:
    """Return which of *parts* the model was not told."""
    return [f"not told: {part}" for part in parts if part not in told]


def one_after_the_other(*moves: Callable[[Sequence[str]], Move]) -> NextMove:
    """Return a talk that makes one move after the other."""
    return lambda told: moves[min(len(told), len(moves) - 1)](told)


def first_run(**arguments: object) -> Callable[[Sequence[str]], Move]:
    """Return the move that calls codex_run."""
    return lambda _: Use("codex_run", dict(arguments))


def done(_: Sequence[str]) -> Move:
    """End the talk."""
    return "Done."


def resume(told: Sequence[str]) -> Move:
    """Resume the thread that the first result names."""
    thread = THREAD.search(told[0])
    if thread is None:
        return "Nothing to resume."
    return Use("codex_resume", {"thread_id": thread[0], "prompt": "second"})


def wait_for(answer: str, *, most: int = 20) -> Callable[[Sequence[str]], Move]:
    """Return the move that waits for the run until its answer has come."""

    def move(told: Sequence[str]) -> Move:
        run = RUN.search(told[0])
        if answer in told[-1] or run is None or len(told) > most:
            return "Done."
        return Use("codex_wait", {"run_ids": [run[0]]})

    return move


def short(play: Play) -> tuple[str, Faults]:
    """Change a file, then resume the thread by the id that the model saw."""
    patch = do(Patch("*** Add File: new.txt\n+hello"))
    play.lab.script("first", patch, say("Made it."))
    play.lab.script("second", say("Still here."))
    play.talk.next_move = one_after_the_other(
        first_run(prompt="first", sandbox="workspace-write"), resume, done
    )
    faults = play.finish()
    if not faults:
        faults = missing(play.talk.told[0], "Made it.", "new.txt")
        faults += missing(play.talk.told[-1], "Still here.")
        faults += ["two threads"] if len(play.lab.rollouts()) != 1 else []
    return sees("".join(play.talk.told[:1])), faults + play.gone()[1]


def sees(told: str) -> str:
    """Return which of the two channels of a result the model was shown."""
    has = {"text": "---\\nthread_id: " in told or "---\nthread_id: " in told}
    has["data"] = re.search(r'"run_id\\*":', told) is not None
    return " and ".join(name for name, is_there in has.items() if is_there) or "nothing"


def failing(play: Play) -> tuple[str, Faults]:
    """Fail by an error of the model's API."""
    play.lab.script("bad", api_error(400, REFUSED, "invalid_request_error"))
    play.talk.next_move = one_after_the_other(first_run(prompt="bad"), done)
    faults = play.finish()
    if not faults:
        told = play.talk.told[0].replace("\\u0027", "'")
        threads = [rollout.stem[-36:] for rollout in play.lab.rollouts()]
        faults = missing(told, "invalid_request", REFUSED, *threads)
    return "kind, reason, thread", faults + play.gone()[1]


def long(play: Play, pause_s: float = 90.0) -> tuple[str, Faults]:
    """Take 90 s, and wait again while the result says that the run is at work."""
    play.lab.script("long", say("Thought it over.", delay_s=pause_s))
    play.talk.next_move = one_after_the_other(
        first_run(prompt="long"), wait_for("Thought it over.")
    )
    faults = play.finish(pause_s)
    waits = len(play.talk.told) - 1
    if not faults:
        faults = missing(play.talk.told[-1], "Thought it over.")
    return "one call" if waits == 0 else f"run + {waits} wait", faults + play.gone()[1]


def background(play: Play) -> tuple[str, Faults]:
    """Start a run that is not waited for, then wait for it."""
    play.lab.script("back", say("Back again.", delay_s=5))
    play.talk.next_move = one_after_the_other(
        first_run(prompt="back", wait_s=0), wait_for("Back again.")
    )
    faults = play.finish()
    if not faults:
        faults = missing(play.talk.told[-1], "Back again.")
        faults += ["not in the background"] if len(play.talk.told) < 2 else []
    return f"run + {len(play.talk.told) - 1} wait", faults + play.gone()[1]


def cancel(play: Play) -> tuple[str, Faults]:
    """Press Ctrl-C while Codex runs a command."""
    return _ended(play, lambda process: os.killpg(process.pid, signal.SIGINT))


def killed(play: Play) -> tuple[str, Faults]:
    """Kill every process of the client while Codex runs a command."""

    def kill(process: subprocess.Popen[bytes]) -> None:
        tree = dict(processes())
        mine = {process.pid}
        while more := {pid for pid, parent in tree.items() if parent in mine} - mine:
            servers = {pid for pid in more if _is_server(pid)}
            if not more - servers:
                break
            mine |= more - servers
            tree = {pid: parent for pid, parent in tree.items() if pid not in servers}
        for pid in mine:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    return _ended(play, kill)


def _is_server(pid: int) -> bool:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        return any(word.endswith("/mcp-server-codex") for word in words[:2])
    return False


def _ended(play: Play, end: Callable[[subprocess.Popen[bytes]], None]) -> tuple[str, Faults]:
    play.lab.script("sleep", do(Shell(SLEEP)), say("never said"))
    play.talk.next_move = one_after_the_other(
        first_run(prompt="sleep", sandbox="workspace-write"), done
    )
    process = play.start()
    begun = time.monotonic()
    while not {*play.left()} >= SLEEPERS:
        if process.poll() is not None or time.monotonic() - begun > WITHIN_S:
            return "?", [f"the command did not start: {play.last_words()}"]
        time.sleep(0.1)
    end(process)
    seconds, faults = play.gone()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    return f"0 after {seconds:.1f} s", faults


CASES: dict[str, Callable[[Play], tuple[str, Faults]]] = {
    "resumed from": short,
    "failing run": failing,
    "run of 90 s": long,
    "background": background,
    "Ctrl-C, left": cancel,
    "SIGKILL, left": killed,
}


def play(client: RealClient, case: Callable[[Play], tuple[str, Faults]]) -> tuple[str, Faults]:
    """Play *case* with *client* in a lab of its own; return what the table says of it."""
    with ExitStack() as stack:
        lab = stack.enter_context(open_lab(PINNED[1]))
        talk = Talk(done)
        if client.speaks == "messages":
            model = MessagesTalk()
            model.talk = talk
            url = stack.enter_context(model) and model.base_url
        elif client.speaks == "codex":
            other = CodexTalk()
            other.talk = talk
            url = stack.enter_context(other) and other.base_url.removesuffix("/v1")
        else:
            url = stack.enter_context(ScriptedTalk(talk)).url
        desk = Desk(lab, url, real_codex(PINNED[1]))
        argv = client.start(desk)
        quiet = {"TERM": "dumb", "TMPDIR": str(lab.root), "CI": "1", "NO_COLOR": "1"}
        env = environment(lab) | quiet | {"PATH": node_path()} | client.env(desk)
        played = Play(client, lab, talk, argv, env)
        try:
            cell, faults = case(played)
        finally:
            played.clear()
        if faults:
            keep = Path(tempfile.mkdtemp(prefix="clients-")) / "log"
            keep.write_text("\n---\n".join([played.last_words(), *talk.told]))
            sys.stderr.write(f"{client.title}, {case.__name__}: {faults}; see {keep}\n")
        return cell, faults


def row(client: RealClient) -> tuple[list[str], Faults]:
    """Play all cases with *client*; return its row of the table."""
    cells, faults = [f"{client.title} {client.version}"], Faults()
    for name, case in CASES.items():
        cell, wrong = "", Faults()
        for _ in range(TRIES):
            cell, wrong = play(client, case)
            if not wrong:
                break
        cells.append("**no**" if wrong else cell)
        faults += [f"{client.title}: {name}: {each}" for each in wrong]
        sys.stdout.write(f"{client.title} {client.version}: {name}: {cells[-1]}\n")
        sys.stdout.flush()
    return [*cells, f"{datetime.now(UTC):%Y-%m-%d}"], faults


def read() -> dict[str, list[str]]:
    """Return the rows of the page as it is, by client."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    lines = [line for line in rest.partition(END)[0].splitlines() if line.startswith("| ")]
    return {cells[0]: cells for cells in (line[2:-2].split(" | ") for line in lines[2:])}


def write(rows: dict[str, list[str]]) -> None:
    """Write the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    head = ["client", *CASES, "measured"]
    names = [f"{client.title} {client.version}" for client in (*CLIENTS, *IF_NAMED)]
    lines = [head, ["---"] * len(head), *(rows[name] for name in names if name in rows)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    PAGE.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Drive the clients named, or all; return the exit code."""
    # A shell starts a background job with SIGINT ignored, which the clients would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = [*arguments]
    pause_s = float(words.pop(words.index("--patience") + 1)) if "--patience" in words else None
    words = [word for word in words if word != "--patience"]
    chosen = [
        client
        for client in (*CLIENTS, *(IF_NAMED if words else ()))
        if not words or any(word in f"{client.title} {client.version}" for word in words)
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        if pause_s is not None:
            seen = zip(chosen, pool.map(patience(pause_s), chosen), strict=True)
            for client, (cell, faults) in seen:
                sys.stdout.write(f"{client.title} {client.version}: {cell} {faults}\n")
            return 0
        rows, faults = read(), Faults()
        for future in as_completed([pool.submit(row, client) for client in chosen]):
            cells, wrong = future.result()
            rows[cells[0]] = cells
            faults += wrong
            write(rows)
    sys.stdout.write("".join(f"{fault}\n" for fault in faults))
    return int(bool(faults))


def patience(pause_s: float) -> Callable[[RealClient], tuple[str, Faults]]:
    """Return a case in which one call lasts *pause_s*, and what the model was told of it."""

    def one_call(play: Play) -> tuple[str, Faults]:
        begun = time.monotonic()
        play.lab.script("long", say("Thought it over.", delay_s=pause_s))
        play.talk.next_move = one_after_the_other(
            first_run(prompt="long", wait_s=pause_s + 60), done
        )
        faults = play.finish(pause_s)
        told = play.talk.told[0][:200] if play.talk.told else ""
        return f"{time.monotonic() - begun:.0f} s: {told}", faults

    return lambda client: play(client, one_call)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
