"""A Codex home that real Codex made, and the truth about it: what the model answered."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from codex_tools.history.index import ThreadIndex
from codex_tools.pricing.prices import Prices, read_prices
from mcp_server_codex.cli.scripted_model import (
    Act,
    Call,
    Cut,
    Refuse,
    Reply,
    Say,
    Shell,
    Step,
    Usage,
    api_error,
    model_name,
)
from support.codex_versions import number, real_codex
from support.lab import Json, Lab, environment, open_lab

OLD = "0.60.1"
NEW = "0.163.0"
LOST = Usage(777_777, 333_333, 7_777, 777)
"""The usage of a reply that is never received: whoever waits for it is killed before."""

PACK = ("--enable", "local_thread_store_compression")
DAYS_9 = 9 * 86_400
MINUTES_10 = 600

SETTLED_S = 0.5
"""After so long Codex has received and written down what it was sent."""

_PATIENCE = ("request_max_retries=0", "stream_max_retries=1")
_LIMIT = Refuse(
    429, {"error": {"type": "usage_limit_reached", "message": "Enough.", "resets_at": 1893456000}}
)
_BAD = api_error(400, "Your request was bad", "invalid_request_error", "bad_thing")


@dataclass(frozen=True, slots=True)
class Used:
    """One reply that Codex has received."""

    at_ms: int
    thread_id: str
    prompt: str
    model: str
    cwd: str
    usage: Usage

    def cost(self, prices: Prices) -> float:
        """Return its price in USD, as the price list has it for one request."""
        price = prices.of(self.model, self.at_ms)
        assert price is not None, self.model
        usage = self.usage
        cost = price.cost(usage.input_tokens, usage.cached_tokens, 0, usage.output_tokens)
        assert cost is not None
        return cost


@dataclass(slots=True)
class Thread:
    """A thread as it was made."""

    thread_id: str
    version: str
    """Of the Codex that began it."""
    prompts: list[str]
    """Of its own turns, oldest first."""
    cwd: str
    model: str
    status: str = "completed"
    paginated: bool = True
    packed: bool = False
    archived: bool = False
    parent_id: str | None = None
    forked_id: str | None = None


def counted(used: Iterable[Used]) -> Json:
    """Return the sums of *used* under the names that the tools give them."""
    sums = {
        "input_tokens": 0,
        "cached_input_tokens": 0,
        "output_tokens": 0,
        "reasoning_output_tokens": 0,
    }
    for each in used:
        sums["input_tokens"] += each.usage.input_tokens
        sums["cached_input_tokens"] += each.usage.cached_tokens
        sums["output_tokens"] += each.usage.output_tokens
        sums["reasoning_output_tokens"] += each.usage.reasoning_tokens
    return sums | {"total_tokens": sums["input_tokens"] + sums["output_tokens"]}


def content_of(home: Path) -> dict[str, tuple[str, int]]:
    """Return a digest and the modification time (ns) of each file in *home*."""
    return {
        str(path.relative_to(home)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in home.rglob("*")
        if path.is_file()
    }


def thread_of(body: Json) -> str:
    """Return the thread that a request belongs to."""
    metadata = cast("Json", body.get("client_metadata") or {})
    return str(metadata.get("thread_id") or body["prompt_cache_key"])


def age(path: Path, seconds: float) -> None:
    """Make *path* look as if nobody had written it for so long."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def plain_exec(
    lab: Lab, codex: Path, *options: str, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """Start `codex exec` as a person would, to be given its prompt on stdin."""
    settings = (f"model_providers.scripted.{each}" for each in _PATIENCE)
    patience = (word for each in settings for word in ("-c", each))
    first = ("exec", "--json", "--skip-git-repo-check", "-s", "danger-full-access")
    return subprocess.Popen(
        [str(codex), *first, *patience, "-C", str(cwd or lab.project), *options, "-"],
        cwd=lab.project,
        env=environment(lab),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ask(process: subprocess.Popen[str], prompt: str) -> None:
    """Give *process* its prompt, and no more."""
    assert process.stdin is not None
    process.stdin.write(prompt)
    process.stdin.close()
    process.stdin = None


def thread_started(output: str) -> str:
    """Return the id of the thread that the events in *output* belong to."""
    lines = (cast("Json", json.loads(line)) for line in output.splitlines())
    return next(str(line["thread_id"]) for line in lines if line["type"] == "thread.started")


def wait_for(condition: Callable[[], Any], within_s: float = 60.0) -> None:
    """Wait until *condition* holds; fail if it does not within *within_s*."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@dataclass
class RealHome:
    """A home in the making, and what was made."""

    lab: Lab
    version: str
    threads: dict[str, Thread] = field(default_factory=dict[str, Thread])
    _cwds: dict[str, str] = field(default_factory=dict[str, str])
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def other(self) -> Path:
        """A second folder to work in, inside the first."""
        return self.lab.project / "other"

    def used(self) -> list[Used]:
        """Return each reply that was received in a thread that is still there."""
        found: list[Used] = []
        for seen in self.lab.model.requests:
            thread_id = thread_of(seen.body)
            if isinstance(seen.step, Reply) and seen.step.usage != LOST:
                if thread_id not in self.threads:
                    continue
                cwd = self._cwds.get(seen.prompt, str(self.lab.project))
                model = str(seen.body["model"])
                usage = seen.step.usage
                at_ms = int(seen.at_s * 1000)
                found.append(Used(at_ms, thread_id, seen.prompt, model, cwd, usage))
        usages = [each.usage for each in found]
        assert len(usages) == len(set(usages)), "each reply must be told from all others"
        return found

    def reply(self, *acts: Act, input_tokens: int = 0, delay_s: float = 0.0) -> Reply:
        """Return a reply with a usage that no other has."""
        n = next(self._numbers)
        size = (input_tokens or 10_000 + 1009 * n) + n
        return Reply(acts, Usage(size, size // 2 + n, 200 + 3 * n, 50 + n), delay_s)

    def say(self, text: str, *, input_tokens: int = 0, delay_s: float = 0.0) -> Reply:
        """Return a reply that ends the turn."""
        return self.reply(Say(text), input_tokens=input_tokens, delay_s=delay_s)

    def turn(
        self,
        prompt: str,
        *steps: Step,
        resume: str | None = None,
        fork: str | None = None,
        cwd: Path | None = None,
        model: str | None = None,
        options: Sequence[str] = (),
        status: str = "completed",
        with_version: str | None = None,
        kill: tuple[signal.Signals, Callable[[], Any]] | None = None,
    ) -> str:
        """Let Codex take a turn; return the thread's id.

        Args:
            prompt: What no other turn is asked.
            steps: What the model answers.
            resume: The thread to go on in.
            fork: The thread to make a fork of.
            cwd: The folder, if not the project.
            model: The model, if not the configured one.
            options: More of the command line.
            status: How the thread stands afterwards.
            with_version: Another Codex than this home's.
            kill: A signal, and when to send it.
        """
        version = with_version or self.version
        self.lab.script(prompt, *steps)
        self._cwds[prompt] = str(cwd or self.lab.project)
        model = model or model_name(number(version))
        words = (*options, "-m", model)
        if resume or fork:
            words += ("resume", resume) if resume else ("fork", cast("str", fork))
        process = plain_exec(self.lab, real_codex(version), *words, cwd=cwd)
        ask(process, prompt)
        if kill is not None:
            wait_for(kill[1])
            time.sleep(SETTLED_S)
            process.send_signal(kill[0])
        output, errors = process.communicate(timeout=60)
        try:
            thread_id = thread_started(output)
        except StopIteration:
            raise AssertionError(f"{prompt}: {errors}") from None
        assert ("turn.completed" in output) is (status == "completed"), output
        thread = self.threads.get(thread_id)
        if thread is None:
            origin = self.threads.get(fork or "")
            thread = self.threads[thread_id] = Thread(
                thread_id,
                version,
                [],
                self._cwds[prompt],
                model,
                paginated=origin.paginated if origin else version != OLD,
                forked_id=fork,
            )
        thread.prompts.append(prompt)
        thread.cwd, thread.model, thread.status = self._cwds[prompt], model, status
        thread.packed = False
        if kill is not None and version == OLD:
            # It may end before it has written down that it was interrupted.
            (*_, last) = self.rollout(thread_id).read_text().splitlines()
            thread.status = "interrupted" if '"turn_aborted"' in last else "unknown"
        return thread_id

    def codex(self, *words: str) -> None:
        """Run another command of the newest Codex."""
        subprocess.run(
            [str(real_codex(NEW)), *words],
            cwd=self.lab.project,
            env=environment(self.lab),
            check=True,
            capture_output=True,
            timeout=60,
        )

    def archive(self, thread_id: str) -> None:
        """Move a thread into the archive."""
        self.codex("archive", thread_id)
        self.threads[thread_id].archived = True

    def delete(self, thread_id: str) -> None:
        """Delete a thread."""
        self.codex("delete", thread_id, "--force")
        del self.threads[thread_id]

    def migrate(self, thread_id: str) -> None:
        """Write a thread anew, as newer versions keep them."""
        self.codex("migrate-rollouts", "--apply", "--thread", thread_id)
        assert '"history_mode":"paginated"' in self.rollout(thread_id).read_text()
        self.threads[thread_id].paginated = True

    def rollout(self, thread_id: str) -> Path:
        """Return where a thread is kept."""
        (path,) = self.lab.home.rglob(f"rollout-*{thread_id}.jsonl*")
        return path

    def pack(self, *threads: str) -> None:
        """Let Codex compress threads, which it does to those that were left for a week."""
        for thread_id in threads:
            age(self.rollout(thread_id), DAYS_9)
        self.turn("pack them", self.say("Packing."), with_version=NEW, options=PACK)
        wait_for(lambda: all(self.rollout(each).suffix == ".zst" for each in threads), 20)
        for thread_id in threads:
            self.threads[thread_id].packed = True

    def was_asked(self, prompt: str, times: int = 1) -> bool:
        """Return whether the model has been asked *prompt* so often."""
        return sum(seen.prompt == prompt for seen in self.lab.model.requests) >= times


def make_threads(home: RealHome) -> None:
    """Make threads of each kind that both the oldest and the newest Codex make."""
    say, turn = home.say, home.turn
    is_old = home.version == OLD
    other_model = "gpt-5.1-codex" if is_old else "gpt-5.4"
    lost = Reply((Say("Never heard."),), LOST, 30)

    first = turn("plain one", home.reply(Shell("echo one")), say("First answer."))
    turn("plain two", say("Second answer."), resume=first)
    turn("plain three", say("Third answer."), resume=first, model=other_model, cwd=home.other)
    turn("plain four", say("Fourth answer."), resume=first)

    grown = turn("small", say("Small.", input_tokens=900))
    bigger = home.reply(Shell("echo two; exit 3"), input_tokens=41_000)
    turn("big", bigger, say("Big."), resume=grown)

    plan = {"plan": [{"step": "A", "status": "completed"}, {"step": "B", "status": "pending"}]}
    turn("plan it", home.reply(Call("update_plan", plan)), say("Planned."), cwd=home.other)

    # 0.60.1 writes nothing of a turn's failure.
    failed = "unknown" if is_old else "failed"
    turn("over the limit", _LIMIT, status=failed)
    turn("bad after work", home.reply(Shell("echo three")), _BAD, status=failed)
    recovered = turn("fail at first", _LIMIT, status=failed)
    turn("then go on", say("Gone on."), resume=recovered)
    turn("cut off once", Cut(), say("At the second attempt."))

    stopped = turn(
        "interrupt me",
        lost,
        status="interrupted",
        kill=(signal.SIGINT, lambda: home.was_asked("interrupt me")),
    )
    killed = "unknown" if is_old else "interrupted"
    turn(
        "kill me later",
        home.reply(Shell("echo four")),
        lost,
        status=killed,
        kill=(signal.SIGKILL, lambda: home.was_asked("kill me later", 2)),
    )
    busy = turn(
        "kill me at work",
        home.reply(Shell("touch at-work; sleep 2")),
        lost,
        status=killed,
        kill=(signal.SIGKILL, (home.lab.project / "at-work").exists),
    )
    turn("work again", say("Working."), resume=busy)
    turn(
        "interrupt me too",
        lost,
        status="interrupted",
        resume=stopped,
        kill=(signal.SIGINT, lambda: home.was_asked("interrupt me too")),
    )

    narrow = ("-c", "model_auto_compact_token_limit=20000")
    long = turn(
        "long talk",
        home.reply(Shell("echo five"), input_tokens=30_000),
        say("Summary one.", input_tokens=30_100),
        say("Talked.", input_tokens=5_200),
        options=narrow,
    )
    turn("talk on", say("On.", input_tokens=7_000), resume=long, options=narrow)
    assert sum(seen.prompt == "long talk" for seen in home.lab.model.requests) == 3


def can_fork(version: str) -> bool:
    """Return whether `codex exec` of *version* makes forks, which 0.147.0 does not yet."""
    helped = subprocess.run(
        [str(real_codex(version)), "exec", "--help"], capture_output=True, text=True, check=True
    )
    return re.search(r"^\s+fork\b", helped.stdout, re.MULTILINE) is not None


def make_old_threads(home: RealHome) -> dict[str, str]:
    """Make threads with the oldest Codex, to be met by a newer one; return their ids."""
    say = home.say

    def begin(name: str) -> str:
        steps = (home.reply(Shell("echo old")), say("Old one."))
        return home.turn(f"{name} one", *steps, with_version=OLD)

    old = {name: begin(name) for name in ("resumed", "copied", "deleted", "left")}
    for name in ("resumed", "copied"):
        home.turn(f"{name} two", say("Old two."), resume=old[name], with_version=OLD)
    return old


def make_new_threads(home: RealHome, old: dict[str, str]) -> None:
    """Make what only newer versions of Codex make: forks, sub-agents, an archive."""
    say, turn = home.say, home.turn
    turn(
        "go on in the old", home.reply(Shell("echo six")), say("New in old."), resume=old["resumed"]
    )
    turn("fail in the old", _BAD, resume=old["resumed"], status="failed")
    turn("end in the old", say("Ended."), resume=old["resumed"])

    copy = turn("fork the old", say("Copied."), fork=old["copied"])
    turn("fork goes on", home.reply(Shell("echo seven")), say("Went on."), resume=copy)
    turn("parent goes on", say("Parent."), resume=old["copied"])
    turn("fork the mixed", say("Mixed."), fork=old["resumed"])
    turn("fork the fork", say("Copied again."), fork=copy)
    turn("fork, then lose the parent", say("An orphan."), fork=old["deleted"])
    home.delete(old["deleted"])

    parent = turn("new parent", home.reply(Shell("echo eight")), say("Parent answers."))
    turn("new parent again", say("Again."), resume=parent)
    fork = turn("new fork", say("Forked."), fork=parent, cwd=home.other)
    turn("new fork again", home.reply(Shell("echo nine")), say("Forked on."), resume=fork)
    turn("new parent third", say("Third."), resume=parent)
    turn("fork of the fork", say("Grandchild."), fork=fork)

    _spawn(home)

    put_away = turn("put away", home.reply(Shell("echo ten")), say("Away."))
    packed_away = turn("pack away", say("Packed away."))
    for thread_id in (put_away, packed_away, copy):
        home.archive(thread_id)
    home.delete(turn("throw away", say("Thrown away.")))

    packed = turn("to be packed", home.reply(Shell("echo eleven")), say("Wait."))
    reopened = turn("packed, then opened", home.reply(Shell("echo twelve")), say("Wait too."))
    home.pack(packed, reopened, packed_away, copy, old["left"], parent)
    turn("open it", say("Opened."), resume=reopened)


def _spawn(home: RealHome) -> None:
    """Let a thread start two sub-agents, one of which gets all that was said before."""
    children = {"a child that knows nothing": False, "a child that knows all": True}
    home.lab.script("a child that knows nothing", home.reply(Shell("echo c")), home.say("A child."))
    home.lab.script("a child that knows all", home.say("Another child."))
    calls = (
        Call("spawn_agent", {"message": prompt, "fork_context": knows}, "multi_agent_v1")
        for prompt, knows in children.items()
    )
    before = home.turn("before the children", home.say("Soon."))
    parent = home.turn(
        "have children",
        home.reply(*calls),
        home.reply(Shell("sleep 2")),
        home.say("They are grown."),
        resume=before,
    )
    for prompt, knows in children.items():
        ids = {thread_of(s.body) for s in home.lab.model.requests if s.prompt == prompt}
        (thread_id,) = ids
        home.threads[thread_id] = Thread(
            thread_id,
            home.version,
            [prompt],
            str(home.lab.project),
            home.threads[parent].model,
            parent_id=parent,
            forked_id=parent if knows else None,
        )


@contextmanager
def open_real_home(version: str, grown: Path) -> Generator[RealHome]:
    """Make a home with Codex *version*.

    Meanwhile an index in the state folder *grown* is brought up to date many
    times a second, so it sees each file half-written and grows with it.
    """
    with open_lab(version) as lab:
        home = RealHome(lab, version)
        home.other.mkdir()
        history = ThreadIndex(lab.home, grown, read_prices())
        enough = threading.Event()
        faults: list[Exception] = []

        def follow() -> None:
            try:
                while not enough.wait(0.05):
                    history.refresh(texts=True)
            except Exception as fault:
                faults.append(fault)

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            old = make_old_threads(home) if version != OLD else {}
            make_threads(home)
            if version != OLD:
                make_new_threads(home, old)
        finally:
            enough.set()
            follower.join()
            history.close()
        assert not faults, faults
        # Without a lock of its own, a turn of 0.60.1 seems to be at work while its file is fresh.
        for thread in home.threads.values():
            if thread.status == "unknown":
                age(home.rollout(thread.thread_id), MINUTES_10)
        yield home
