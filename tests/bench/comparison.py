"""Measure other MCP servers for Codex beside this one; write the table in docs/comparison.md.

    make comparison                       # all of them: a quarter of an hour
    make comparison ARGS="amicus swarm"   # some of them; replaces their rows
    make comparison ARGS="--case starts"  # one case; replaces its columns

Each is installed from its registry and called through its own tools, with a real Codex and a
scripted model on loopback. Each case has a lab of its own. A case that fails is a figure as well;
its reason goes to stderr. Needs Linux's /proc.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from huge_line import memory
from peers import PEERS, Call, Peer, codex_on_path
from stdio_session import Session

from codex_tools.codex.json_object import Json
from codex_tools.engines.guard import processes
from mcp_server_codex.cli.scripted_model import (
    ScriptedModel,
    Seen,
    Shell,
    Step,
    api_error,
    do,
    model_name,
    say,
)
from support.codex_versions import CACHE, PINNED, number, real_codex
from support.lab import Lab, commands, environment, marked

TOP = Path(__file__).resolve().parents[2]
PAGE = TOP / "docs" / "comparison.md"
BEGIN, END = "<!-- measured by `make comparison` -->\n", "<!-- what was measured ends here -->"

CODEX = PINNED[1]
AT_ONCE = 2
STARTS = 5
"""Starts of each server. The one that took least counts: other work only makes them dearer."""
SETTLED_S = 3.0
"""Seconds for which the command has run before its run is ended: earlier it is a race whether
Codex meets the closed pipe of its server and ends."""
WITHIN_S = 60.0
"""Seconds within which a short call must have been answered."""
LEFT_AFTER_S = 5.0
"""Seconds after the end of a call or of a server, at which the processes of its run are counted."""
SLEEP = "(setsid sleep 602 &); sleep 600"
MB, KB = 1_000_000, 1000
SANDBOX = re.compile(r"sandbox_mode. is .(read-only|workspace-write|danger-full-access)")
"""How Codex 0.163.0 tells its model the sandbox of the turn."""


class Model(ScriptedModel):
    """A scripted model that finds its script by a part of a prompt: some servers add to prompts."""

    guard = threading.Lock()

    def next_step(self, body: Json, authorization: str | None) -> Step:
        """Record one request and return the step that answers it."""
        said = json.dumps(body.get("input"), ensure_ascii=False)
        key = max(self.scripts, key=lambda each: said.rfind(each))
        with self.guard:
            steps = self.scripts[key] if key in said else self.default
            taken = sum(seen.prompt == key for seen in self.requests)
            step = steps[min(taken, len(steps) - 1)]
            self.requests.append(Seen(time.time(), key, body, authorization, step))
        return step


@dataclass
class Case:
    """One lab, in which a peer can be started several times."""

    peer: Peer
    lab: Lab
    env: dict[str, str]
    command: Sequence[str]
    open: list[Session] = field(default_factory=list[Session])

    def start(self) -> Session:
        """Start the server and do the handshake."""
        session = Session.start(self.command, self.lab.project, self.env)
        self.open.append(session)
        session.initialize()
        return session

    def call(self, session: Session, call: Call, within_s: float = WITHIN_S) -> tuple[Json, int]:
        """Call a tool, wait for what it started, and return the result and its bytes."""
        name, arguments = call
        answer, size = session.ask("tools/call", {"name": name, "arguments": arguments}, within_s)
        result = cast("Json", answer.get("result") or {"isError": True, "error": answer["error"]})
        wait, started = self.peer.wait, find_id(result, self.peer.keys)
        if wait is not None and name != wait("")[0] and started is not None:
            return self.call(session, wait(started), within_s)
        return result, size

    def run(self, session: Session, prompt: str, sandbox: str = "read-only") -> tuple[Json, int]:
        """Run *prompt*."""
        return self.call(session, self.peer.run(prompt, sandbox, self.lab))

    def sandbox(self, prompt: str) -> str | None:
        """Return the sandbox that Codex told its model in the turn of *prompt*."""
        found: list[str] = []
        for seen in self.lab.model.requests:
            if seen.prompt == prompt:
                found += SANDBOX.findall(json.dumps(seen.body, ensure_ascii=False))[-1:]
        return found[-1] if found else None

    def begin_sleep(self, session: Session, arguments: Json | None = None) -> tuple[int, set[int]]:
        """Start a run that sleeps; return the call's id and the run's processes."""
        self.lab.script("MARK-SLEEP", do(Shell(SLEEP)), say("never said"))
        before = {*marked(str(self.lab.root))}
        name, known = self.peer.run("MARK-SLEEP", "workspace-write", self.lab)
        call = {"name": name, "arguments": known | (arguments or {})}
        request = session.begin("tools/call", call)
        ends = time.monotonic() + WITHIN_S
        while not any(each.startswith("sleep 600") for each in commands(str(self.lab.root))):
            if time.monotonic() > ends:
                raise TimeoutError("the command did not start")
            time.sleep(0.1)
        time.sleep(SETTLED_S)
        return request, {*marked(str(self.lab.root))} - before

    def left(self, run: set[int]) -> int:
        """Return how many processes of the run are left after LEFT_AFTER_S.

        What the server has started since then for itself belongs to no run.
        """
        time.sleep(LEFT_AFTER_S)
        return len({*marked(str(self.lab.root))} & run)

    def clear(self) -> None:
        """Kill what the case has started."""
        for pid in marked(str(self.lab.root)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for session in self.open:
            session.process.kill()
            session.process.wait()


@contextmanager
def open_case(peer: Peer) -> Generator[Case]:
    """Make a lab in which *peer* finds a real Codex and a configuration wider than the calls."""
    labs = CACHE / "labs"
    labs.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=labs, ignore_cleanup_errors=True) as place,
        Model() as model,
    ):
        lab = Lab(Path(place).resolve(), model)
        wide = 'sandbox_mode = "workspace-write"\napproval_policy = "never"'
        model.write_config(lab.home, model=model_name(number(CODEX)), extra=wide)
        (lab.root / ".codex").symlink_to(lab.home)
        # Some servers ask `codex login status` first; the scripted model asks for no key.
        (lab.home / "auth.json").write_text('{"OPENAI_API_KEY": "scripted"}')
        lab.project.mkdir()
        lab.blocks.mkdir()
        subprocess.run(["git", "init", "-q"], cwd=lab.project, check=True)
        env = environment(lab)
        env["PATH"] = f"{codex_on_path(lab, real_codex(CODEX))}{os.pathsep}{env['PATH']}"
        peer.prepare(lab, env)
        case = Case(peer, lab, env, peer.command(lab))
        try:
            yield case
        finally:
            case.clear()


def find_id(result: Json, keys: Sequence[str]) -> str | None:
    """Return the id of the conversation: from a field named in *keys*, else Codex's own."""
    text = json.dumps(result)
    for key in keys:
        found = re.search(rf'\\*"{key}\\*": ?\\*"([^"\\]+)', text)
        if found is not None:
            return found[1]
    codex = re.search(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)
    return codex[0] if codex is not None else None


def failed(result: Json) -> bool:
    """Return True if the client is told that the call has failed."""
    return bool(result.get("isError"))


def starts(case: Case) -> dict[str, str]:
    """Measure the start, the memory and the list of tools."""
    seconds: list[float] = []
    listed: Json = {}
    sizes: list[int] = []
    rss = 0
    for _ in range(STARTS):
        session = case.start()
        answer, size = session.ask("tools/list", {})
        listed = cast("Json", answer["result"])
        sizes.append(size)
        tree = tree_of(session.process.pid)
        seconds.append(sum(cpu_s(pid) for pid in tree))
        rss = sum(memory("VmRSS", pid) for pid in tree)
        session.process.kill()
    tools = cast("list[Json]", listed["tools"])
    read = [{k: tool[k] for k in ("name", "description", "inputSchema")} for tool in tools]
    shown = len(json.dumps(read, separators=(",", ":"), ensure_ascii=False).encode())
    name, _ = case.peer.run("", "read-only", case.lab)
    run = next(tool for tool in tools if tool["name"] == name)
    return {
        "start, CPU s": f"{min(seconds):.2f}",
        "memory, MB": f"{rss / MB:.0f}",
        "tools": str(len(tools)),
        "`tools/list`, KB": f"{sizes[-1] / KB:.0f}",
        "for the model, KB": f"{shown / KB:.0f}",
        "output schema": "yes" if "outputSchema" in run else "no",
    }


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_of(root: int) -> set[int]:
    """Return the ids of a process and of its descendants."""
    pairs, found = [*processes()], {root}
    while more := {pid for pid, parent in pairs if parent in found} - found:
        found |= more
    return found


def short(case: Case) -> dict[str, str]:
    """Run read-only, resume without a sandbox in the same server and in a new one."""
    case.lab.script("MARK-FIRST", say("The answer."))
    case.lab.script("MARK-AGAIN", say("Again."))
    case.lab.script("MARK-LATER", say("Later."))
    session = case.start()
    result, _ = case.run(session, "MARK-FIRST")
    if "The answer." not in json.dumps(result):
        raise RuntimeError(f"no answer: {json.dumps(result)[:500]}")
    asked = case.sandbox("MARK-FIRST")
    seen = {
        "structured result": "yes" if result.get("structuredContent") else "no",
        "ran in": asked or "?",
    }
    known = find_id(result, case.peer.keys)
    if case.peer.resume is None:
        return seen | {"resumed in": "-", "resumed by a new server": "no"}
    case.call(session, case.peer.resume(known or "", "MARK-AGAIN"))
    seen["resumed in"] = case.sandbox("MARK-AGAIN") or "?"
    session.close_input()
    case.call(case.start(), case.peer.resume(known or "", "MARK-LATER"))
    later = [each for each in case.lab.model.requests if each.prompt == "MARK-LATER"]
    remembers = any("The answer." in json.dumps(each.body) for each in later)
    seen["resumed by a new server"] = "yes" if remembers else "no"
    return seen


def failing(case: Case) -> dict[str, str]:
    """Fail by an error of the model's API."""
    refusal = "Unsupported value: 'turbo' is not supported with this model."
    case.lab.script("MARK-BAD", api_error(400, refusal, "invalid_request_error"))
    result, _ = case.run(case.start(), "MARK-BAD")
    told = "with the reason" if "Unsupported value" in json.dumps(result) else "without the reason"
    return {"a failed turn is an error": f"{'yes' if failed(result) else 'no'}, {told}"}


def dash(case: Case) -> dict[str, str]:
    """Send a prompt that looks like an option."""
    case.lab.script("--MARK-DASH is not an option", say("Read it."))
    result, _ = case.run(case.start(), "--MARK-DASH is not an option")
    return {"prompt with `-`": "yes" if "Read it." in json.dumps(result) else "no"}


def long_prompt(case: Case) -> dict[str, str]:
    """Send a prompt of 300 KB."""
    case.lab.script("MARK-END", say("Read all."))
    result, _ = case.run(case.start(), f"{'word ' * 60_000}MARK-END")
    whole = any(len(json.dumps(seen.body)) > 300_000 for seen in case.lab.model.requests)
    if whole and "Read all." in json.dumps(result):
        return {"prompt of 300 KB": "yes"}
    return {"prompt of 300 KB": "refused" if failed(result) else "no, and no error"}


def long_answer(case: Case) -> dict[str, str]:
    """Receive an answer of 400 KB."""
    case.lab.script("MARK-LONG", say("word " * 80_000))
    _, size = case.run(case.start(), "MARK-LONG")
    return {"answer of 400 KB, KB": f"{size / KB:.0f}"}


def progress(case: Case) -> dict[str, str]:
    """Watch the progress of a command of 12 s."""
    case.lab.script("MARK-WORK", do(Shell("sleep 12")), say("Done it."))
    session = case.start()
    case.run(session, "MARK-WORK", "workspace-write")
    messages = {*session.messages}
    if any("sleep 12" in message for message in messages):
        return {"progress in 12 s": "names the command"}
    count = len(session.messages)
    return {"progress in 12 s": f"{count} message{'s' * (count != 1)}" if messages else "none"}


def cancelled(case: Case) -> dict[str, str]:
    """Cancel the call."""
    session = case.start()
    request, run = case.begin_sleep(session)
    session.notify("notifications/cancelled", {"requestId": request, "reason": "not needed"})
    return {"cancelled call": str(case.left(run))}


def input_ended(case: Case) -> dict[str, str]:
    """End the input, as a client does that ends."""
    session = case.start()
    _, run = case.begin_sleep(session)
    session.close_input()
    return {"end of input": str(case.left(run))}


def terminated(case: Case) -> dict[str, str]:
    """Send SIGTERM to the server."""
    session = case.start()
    _, run = case.begin_sleep(session)
    session.process.terminate()
    return {"SIGTERM": str(case.left(run))}


def killed(case: Case) -> dict[str, str]:
    """Send SIGKILL to the server."""
    session = case.start()
    _, run = case.begin_sleep(session)
    session.process.kill()
    return {"SIGKILL": str(case.left(run))}


def limited(case: Case) -> dict[str, str]:
    """Let the time limit of the call end the run."""
    if case.peer.limit is None:
        return {"time limit": "-"}
    name, least = case.peer.limit
    session = case.start()
    request, run = case.begin_sleep(session, {name: least})
    session.answer_to(request, WITHIN_S)
    return {"time limit": str(case.left(run))}


CASES: dict[Callable[[Case], dict[str, str]], tuple[str, ...]] = {
    starts: (
        *("start, CPU s", "memory, MB", "tools", "`tools/list`, KB"),
        *("for the model, KB", "output schema"),
    ),
    short: ("structured result", "ran in", "resumed in", "resumed by a new server"),
    failing: ("a failed turn is an error",),
    dash: ("prompt with `-`",),
    long_prompt: ("prompt of 300 KB",),
    long_answer: ("answer of 400 KB, KB",),
    progress: ("progress in 12 s",),
    cancelled: ("cancelled call",),
    input_ended: ("end of input",),
    terminated: ("SIGTERM",),
    killed: ("SIGKILL",),
    limited: ("time limit",),
}
"""What each case measures."""

ENDS = (cancelled, input_ended, terminated, killed)
"""Cases that are played twice."""

TABLES = {
    "Start and list of tools": (
        *(
            "start, CPU s",
            "memory, MB",
            "tools",
            "`tools/list`, KB",
            "for the model, KB",
            "measured",
        ),
    ),
    "Results": (
        *("output schema", "structured result", "a failed turn is an error"),
        *("answer of 400 KB, KB", "progress in 12 s"),
    ),
    "Prompts, sandbox and resume": (
        *("prompt with `-`", "prompt of 300 KB"),
        *("ran in", "resumed in", "resumed by a new server"),
    ),
    "Processes of a run that are left": (
        *("cancelled call", "end of input", "SIGTERM", "SIGKILL", "time limit"),
    ),
}
"""The tables of the page, and their columns."""


def measure(peer: Peer, chosen: str | None = None) -> dict[str, str]:
    """Play all cases with *peer*, or one; return its row, or a part of it."""
    row: dict[str, str] = {}
    for case, names in CASES.items():
        if chosen not in (None, case.__name__):
            continue
        if peer.unserved and case is not starts:
            row |= dict.fromkeys(names, "-")
            continue
        seen = play(peer, case, names)
        if case in ENDS:
            seen = {name: worst(seen[name], play(peer, case, names)[name]) for name in names}
        row |= seen
        sys.stdout.write(f"{peer.name}: {seen}\n")
        sys.stdout.flush()
    return row | {"measured": f"{datetime.now(UTC):%Y-%m-%d}"}


def play(
    peer: Peer, case: Callable[[Case], dict[str, str]], names: Sequence[str]
) -> dict[str, str]:
    """Play one case in a lab of its own; return what was seen."""
    with open_case(peer) as opened:
        try:
            return case(opened)
        except Exception as error:
            log = (opened.lab.root / "peer.log").read_text(errors="replace")[-400:]
            sys.stderr.write(f"{peer.name}, {case.__name__}: {error!r}\n{log}\n")
            return dict.fromkeys(names, "fails")


def worst(one: str, other: str) -> str:
    """Return both counts if they differ, the smaller first: what is left can be a race."""
    if one.isdigit() and other.isdigit() and one != other:
        low, high = sorted((int(one), int(other)))
        return f"{low} or {high}"
    return one


def title(peer: Peer) -> str:
    """Return the heading of a peer's column."""
    return f"{peer.name} {peer.version or version('mcp-server-codex')}"


def read() -> dict[str, dict[str, str]]:
    """Return what the page holds, by server and column."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    found: dict[str, dict[str, str]] = {}
    head: list[str] = []
    for line in rest.partition(END)[0].splitlines():
        if not line.startswith("| "):
            head = []
            continue
        name, *cells = line[2:-2].split(" | ")
        if head and name != "---":
            found.setdefault(name, {}).update(zip(head, cells, strict=True))
        head = head or cells
    return found


def write(columns: dict[str, dict[str, str]]) -> None:
    """Write the tables into the page: a row for each server."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    known = [title(peer) for peer in PEERS if title(peer) in columns]
    parts: list[str] = []
    for heading, names in TABLES.items():
        head = ["server", *names]
        lines = [head, ["---"] * len(head)]
        lines += [[name, *(columns[name].get(row, "?") for row in names)] for name in known]
        parts.append(f"\n## {heading}\n\n")
        parts += [f"| {' | '.join(cells)} |\n" for cells in lines]
    PAGE.write_text(f"{before}{BEGIN}{''.join(parts)}\n{END}{after}", encoding="utf-8")


def main(words: Sequence[str]) -> int:
    """Measure the servers named, or all."""
    names = [*words]
    case = names.pop(names.index("--case") + 1) if "--case" in names else None
    names = [name for name in names if name != "--case"]
    chosen = [peer for peer in PEERS if not names or any(name in peer.name for name in names)]
    columns = read()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        rows = pool.map(partial(measure, chosen=case), chosen)
        for peer, row in zip(chosen, rows, strict=True):
            columns[title(peer)] = columns.get(title(peer), {}) | row
            write(columns)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
