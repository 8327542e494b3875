"""Make synthetic Codex homes whose usage is known exactly.

Every line has the format that Codex 0.60.1 or 0.169.0 writes, including the order of its keys.
The numbers are drawn at random, so the usage of each thread is known beforehand. The same
arguments give the same bytes. The kinds of threads:

    old            0.60.1: totals restart at 0 with each resume, counts are written twice
    new            0.169, paginated: a token_usage_record for each response
    mixed          old, resumed by 0.169, which continues in the legacy format
    fork           0.169, paginated: nothing is copied, totals are inherited
    legacy_fork    0.169: all of an old parent is copied under new timestamps
    sub_agent      0.169: a file of its own, with totals from 0
    context_agent  0.169: the parent's context and its open turn are copied, but no counts
    replay_agent   0.144: like a legacy fork; described in issues, not seen here

Each kind has compactions, turns that fail or use no tokens, and command output that looks like a
rollout. `weird` adds files that a crash or a person leaves behind.

    PYTHONPATH=tests python -m support.synthetic_home OUT --sessions N --days D --seed S
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from bisect import bisect_left
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zstandard

from support.synthetic_thread import DAY_MS, Request, Thread, Tokens, stamp

KINDS = {
    "old": 30,
    "new": 38,
    "mixed": 6,
    "fork": 8,
    "legacy_fork": 5,
    "sub_agent": 6,
    "context_agent": 4,
    "replay_agent": 3,
}
"""The weight of each kind in the draw; the first threads of a home are one of each kind."""

START = datetime(2026, 11, 1, tzinfo=UTC)

_POOL = 30
_POOL_LINES = 1500

_DECOY = (
    r"{\"timestamp\":\"2026-11-02T00:00:00.000Z\",\"type\":\"event_msg\",\"payload\":"
    r"{\"type\":\"token_count\",\"info\":{\"total_token_usage\":{\"input_tokens\":999999,"
    r"\"cached_input_tokens\":0,\"output_tokens\":9,\"reasoning_output_tokens\":0,"
    r"\"total_tokens\":1000008},\"last_token_usage\":{\"input_tokens\":999999,"
    r"\"cached_input_tokens\":0,\"output_tokens\":9,\"reasoning_output_tokens\":0,"
    r"\"total_tokens\":1000008}}}}\n"
)


@dataclass(slots=True)
class Used:
    """The sums of some requests."""

    requests: int = 0
    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def add(self, tokens: Tokens) -> None:
        """Add one request."""
        self.requests += 1
        self.input += tokens.input
        self.cached += tokens.cached
        self.output += tokens.output
        self.reasoning += tokens.reasoning


@dataclass(slots=True)
class Session:
    """The facts of one thread that a reader must find in its file."""

    thread_id: str
    kind: str
    path: str
    """Relative to the home, like `copy`: a shorter copy of the file in the other folder."""
    copy: str | None
    archived: bool
    parent: str | None
    turns: int
    prompt: str
    ending: str
    cwd: str
    model: str
    active_ms: int
    used: Used
    requests: list[Request]


@dataclass(slots=True)
class Truth:
    """The facts that an index of the home must report."""

    total: Used = field(default_factory=Used)
    by_day: dict[str, Used] = field(default_factory=lambda: defaultdict(Used))
    """By day in UTC, such as 2026-11-01."""
    by_model: dict[str, Used] = field(default_factory=lambda: defaultdict(Used))
    by_cwd: dict[str, Used] = field(default_factory=lambda: defaultdict(Used))
    sessions: dict[str, Session] = field(default_factory=dict[str, Session])
    names: dict[str, str] = field(default_factory=dict[str, str])
    unreadable: list[str] = field(default_factory=list[str])
    """Files that are named like rollouts but are not rollouts."""
    size: int = 0
    """Bytes written, after compression."""

    @property
    def by_session(self) -> dict[str, Used]:
        """The usage of each thread."""
        return {thread_id: session.used for thread_id, session in self.sessions.items()}

    def add(self, session: Session) -> None:
        """Add a thread."""
        self.sessions[session.thread_id] = session
        for ms, model, cwd, tokens in session.requests:
            day = stamp(ms)[:10]
            for used in (self.total, self.by_day[day], self.by_model[model], self.by_cwd[cwd]):
                used.add(tokens)

    def write(self, path: Path) -> None:
        """Write all facts except the single requests as JSON."""
        sessions = {id_: asdict(session) for id_, session in self.sessions.items()}
        for session in sessions.values():
            del session["requests"]
        found: dict[str, Any] = {
            "total": asdict(self.total),
            "by_day": {day: asdict(used) for day, used in sorted(self.by_day.items())},
            "by_model": {model: asdict(used) for model, used in self.by_model.items()},
            "by_cwd": {cwd: asdict(used) for cwd, used in self.by_cwd.items()},
            "sessions": sessions,
            "names": self.names,
            "unreadable": self.unreadable,
            "size": self.size,
        }
        path.write_text(json.dumps(found))


def make_home(
    folder: Path,
    *,
    sessions: int,
    days: int,
    seed: int,
    packed: float = 0.0,
    weird: bool = True,
    turns: float = 3,
    output_kb: float = 1,
    start: datetime = START,
) -> Truth:
    """Write a CODEX_HOME into *folder* and return its facts.

    Args:
        folder: The folder of the home; it is made if it does not exist.
        sessions: The number of threads; at least 8 for one of each kind.
        days: The number of days in which the threads start.
        seed: The seed of the draw; another seed gives another home.
        packed: The fraction of rollouts that are compressed.
        weird: True to add torn, empty, foreign and duplicate files, and names.
        turns: The number of turns of the median thread.
        output_kb: The KB that the median command prints.
        start: The earliest start of a thread.
    """
    return Maker(folder, random.Random(seed), turns, output_kb).make(
        sessions, days, round(start.timestamp() * 1000), packed, weird
    )


class _Prose:
    """Text escaped for a JSON string, cut from one long text."""

    def __init__(self, draw: random.Random) -> None:
        letters = "abcdefghijklmnopqrstuvwxyzäé"
        self.words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(2000)]
        self._draw = draw
        lines: list[str] = []
        self._starts = [0]
        for n in range(20_000):
            line = " ".join(draw.choices(self.words, k=draw.randint(3, 14)))
            line += r" \"type\":\"task_complete\"\n" if n % 10 == 0 else r"\n"
            lines.append(_DECOY if n % 500 == 0 else line)
            self._starts.append(self._starts[-1] + len(lines[-1]))
        self._sheet = "".join(lines)

    def text(self, size: int) -> str:
        """Return whole lines of at least *size* characters together."""
        starts = self._starts
        parts: list[str] = []
        while size > 0:
            first = starts[self._draw.randrange(len(starts) - 1)]
            end = starts[min(bisect_left(starts, first + size), len(starts) - 1)]
            parts.append(self._sheet[first:end])
            size -= end - first
        return "".join(parts)

    def prompt(self) -> str:
        """Return a prompt."""
        return " ".join(self._draw.choices(self.words, k=self._draw.randint(4, 40)))


class Maker:
    """Write the threads of one home and record their facts."""

    def __init__(self, folder: Path, draw: random.Random, turns: float, output_kb: float) -> None:
        self.folder, self.draw, self.turns, self.output_kb = folder, draw, turns, output_kb
        self.prose = _Prose(draw)
        self.instructions = self.prose.text(20_500)
        self.developer = self.prose.text(7000)
        self.switch = self.prose.text(17_000)
        self.world = self.prose.text(3300)
        self.truth = Truth()

    def make(self, sessions: int, days: int, start_ms: int, packed: float, weird: bool) -> Truth:
        draw = self.draw
        old: list[Thread] = []
        new: list[Thread] = []
        times = sorted(start_ms + draw.randrange(days * DAY_MS) for _ in range(sessions))
        kinds = [*KINDS, *draw.choices([*KINDS], [*KINDS.values()], k=sessions)]
        for n, (ms, kind) in enumerate(zip(times, kinds, strict=False)):
            pool = old if kind in ("old", "mixed", "legacy_fork", "replay_agent") else new
            thread = Thread(self, kind, ms, draw.choice(pool) if pool else None)
            thread.write_all()
            self._save(thread, n if weird else -1, draw.random() < packed)
            if kind in ("old", "mixed", "new", "fork") and len(thread.lines) < _POOL_LINES:
                pool.append(thread)
                if len(pool) > _POOL:
                    del pool[draw.randrange(10)]
        if weird:
            self._add_foreign(start_ms)
            self._name_some()
        return self.truth

    def id(self, ms: int) -> str:
        """Return a UUID of version 7."""
        bits = self.draw.getrandbits(74)
        return (
            f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7{bits & 0xFFF:03x}"
            f"-{0x8000 | bits >> 12 & 0x3FFF:04x}-{bits >> 26:012x}"
        )

    def output_size(self) -> int:
        return max(80, int(self.draw.lognormvariate(0, 1.1) * self.output_kb * 1024))

    def turn_count(self) -> int:
        return max(1, min(60, int(self.draw.lognormvariate(0, 0.8) * self.turns)))

    def _save(self, thread: Thread, n: int, packed: bool) -> None:
        """Write a thread's file; *n* selects its fault, if any."""
        archived = n % 10 == 7
        day = stamp(thread.created_ms)
        name = f"rollout-{day[:10]}T{day[11:19].replace(':', '-')}-{thread.id}.jsonl"
        sessions = f"sessions/{day[:10].replace('-', '/')}"
        here, there = ("archived_sessions", sessions)[:: 1 if archived else -1]
        data = "\n".join(thread.lines) + "\n"
        if n % 17 == 3:
            data += (
                f'{{"timestamp":"{stamp(thread.ms)}","type":"event_msg","payload":{{'
                '"type":"token_count","info":{"total_token_usage":{"input_tokens":12'
            )
        elif n % 19 == 5:
            data = data[:-1]
        path = f"{here}/{name}{'.zst' if packed else ''}"
        self._write(path, data.encode(), thread.ms)
        copy = None
        if n % 23 == 11 or n == 1:
            copy = f"{there}/{name}"
            part = thread.lines[: len(thread.lines) // 2]
            self._write(copy, ("\n".join(part) + "\n").encode(), thread.ms)
        used = Used()
        for request in thread.requests:
            used.add(request.tokens)
        self.truth.add(
            Session(
                thread_id=thread.id,
                kind=thread.kind,
                path=path,
                copy=copy,
                archived=archived,
                parent=thread.parent.id if thread.parent is not None else None,
                turns=thread.turns,
                prompt=thread.prompt,
                ending=thread.ending,
                cwd=thread.cwd,
                model=thread.model,
                active_ms=thread.ms,
                used=used,
                requests=thread.requests,
            )
        )

    def _write(self, name: str, data: bytes, ms: int) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".zst"):
            data = zstandard.ZstdCompressor().compress(data)
        path.write_bytes(data)
        os.utime(path, ns=(ms * 1_000_000, ms * 1_000_000))
        self.truth.size += len(data)

    def _add_foreign(self, ms: int) -> None:
        lines = (
            b'not json\n{"type":"event_msg"}\n[1,2]\nnull\n"type":"token_count"\n'
            b'{"timestamp":"2026-11-01T00:00:02.000Z","type":"event_msg",'
            b'"payload":{"type":"token_count","info":"oops"}}\n'
        )
        day = stamp(ms)[:10]
        for second, data in enumerate((b"", self.draw.randbytes(50_000), lines)):
            name = f"rollout-{day}T00-00-0{second}-{self.id(ms + second)}.jsonl"
            path = f"sessions/{day.replace('-', '/')}/{name}"
            self._write(path, data, ms)
            if data:  # An empty file is no fault: a run that is cancelled at once leaves one.
                self.truth.unreadable.append(path)

    def _name_some(self) -> None:
        """Name every second thread, and rename some of them."""
        named = list(self.truth.sessions)[::2]
        lines: list[str] = []
        for n, thread_id in enumerate((*named, *named[::3])):
            self.truth.names[thread_id] = f"Name {n}"
            lines.append(
                f'{{"id":"{thread_id}","thread_name":"Name {n}",'
                '"updated_at":"2026-11-22T15:28:49.692406209Z"}\n'
            )
        (self.folder / "session_index.jsonl").write_text("".join(lines))


def main() -> None:
    """Write a home and its facts in truth.json."""
    parser = argparse.ArgumentParser(description="Write a synthetic CODEX_HOME and truth.json.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--days", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--packed", type=float, default=0.0)
    parser.add_argument("--turns", type=float, default=3)
    parser.add_argument("--output-kb", type=float, default=1)
    given = parser.parse_args()
    truth = make_home(
        given.out,
        sessions=given.sessions,
        days=given.days,
        seed=given.seed,
        packed=given.packed,
        turns=given.turns,
        output_kb=given.output_kb,
    )
    truth.write(given.out / "truth.json")
    sys.stdout.write(f"{given.out}: {truth.size / 1e6:.1f} MB, {truth.total}\n")


if __name__ == "__main__":
    main()
