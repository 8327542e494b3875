"""What an index tells of a home, what it does to its files, and rollouts by the line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

from codex_tools.codex.json_object import Json
from codex_tools.history.index import ThreadIndex
from codex_tools.history.usage_report import find_usage
from codex_tools.pricing.prices import Prices, read_prices
from codex_tools.sessions import SessionsRequest, find_sessions
from support.synthetic_home import Request, Session, Tokens, Truth, Used

Row = tuple[int, int, int, int, int]
"""Requests, input, cached, output and reasoning tokens."""

START = datetime(2025, 2, 20, tzinfo=UTC)
"""When homes under test begin: long ago, and the clocks change before they end."""

PRICES = read_prices()

_STATUSES = {
    "": "unknown",
    "asked": "unknown",
    "answered": "completed",
    "completed": "completed",
    "failed": "failed",
    "interrupted": "interrupted",
}


@contextmanager
def open_index(home: Path, state: Path, prices: Prices = PRICES) -> Generator[ThreadIndex]:
    """Open an index, and let go of it."""
    history = ThreadIndex(home, state, prices)
    try:
        yield history
    finally:
        history.close()


# What it tells.


def usage(history: ThreadIndex, **given: Any) -> Json:
    """Ask for usage; by UTC unless *given* says otherwise."""
    wanted: Json = {"timezone": "UTC"} | given
    return find_usage(history, None, **wanted)


def sessions(history: ThreadIndex, **given: Any) -> Json:
    """Ask for a list of threads."""
    request = SessionsRequest(**given)
    return find_sessions(request, history, history.home / "no-state", None, None)


def all_sessions(history: ThreadIndex, **given: Any) -> list[Json]:
    """Ask for page after page, until there is no other."""
    pages: list[Json] = []
    cursor: str | None = None
    while True:
        page = sessions(history, **given, cursor=cursor)
        pages += page["sessions"]
        cursor = page["next_cursor"]
        if cursor is None:
            assert page["total"] == len(pages)
            return pages


def found_ids(history: ThreadIndex, **given: Any) -> list[str]:
    """Return the ids of the threads that a list tells of."""
    return [each["thread_id"] for each in sessions(history, **given)["sessions"]]


def row(told: Json) -> Row:
    """Return the numbers of a row of usage, which must agree among themselves."""
    assert told["total_tokens"] == told["input_tokens"] + told["output_tokens"]
    return (
        told["requests"],
        told["input_tokens"],
        told["cached_input_tokens"],
        told["output_tokens"],
        told["reasoning_output_tokens"],
    )


def rows(told: Json) -> dict[str, Row]:
    """Return the numbers of each group."""
    found = {group["key"]: row(group) for group in told["groups"]}
    assert len(found) == len(told["groups"])
    return found


def answers(home: Path, state: Path, prices: Prices = PRICES) -> Json:
    """Return all that an index tells of a home that does not depend on when it is asked."""
    with open_index(home, state, prices) as history:
        return all_told(history)


def all_told(history: ThreadIndex) -> Json:
    """Return all that an open index tells but what depends on when it is asked."""
    found: Json = {}
    for group_by in ("day", "model", "cwd", "thread"):
        told = usage(history, group_by=group_by)
        found[group_by] = sorted(told["groups"], key=lambda group: group["key"])
        found |= {key: told[key] for key in ("totals", "sessions_read", "unreadable")}
        found["limits"] = told["rate_limits"] and told["rate_limits"]["observed_at"]
    wanted = {"include_archived": True, "include_subagents": True, "limit": 100}
    found["sessions"] = all_sessions(history, **wanted)
    return found


def differences(found: object, expected: object, where: str = "") -> list[str]:
    """Return where two answers differ; sums of floats may by what their order makes of them."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = cast("set[str]", {*found, *expected})
        ours, theirs = cast("Json", found), cast("Json", expected)
        return [
            each
            for key in sorted(keys)
            for each in differences(ours.get(key), theirs.get(key), f"{where}.{key}")
        ]
    if isinstance(found, list) and isinstance(expected, list):
        pairs = list(zip_longest(cast("list[Any]", found), cast("list[Any]", expected)))
        return [
            each
            for n, (ours, theirs) in enumerate(pairs)
            for each in differences(ours, theirs, f"{where}[{n}]")
        ]
    if isinstance(found, float) and isinstance(expected, float):
        return [] if abs(found - expected) < 2e-6 else [f"{where}: {found}, not {expected}"]
    return [] if found == expected else [f"{where}: {found!r}, not {expected!r}"]


# What is true.


def numbers(used: Used) -> Row:
    """Return what was used as a row."""
    return used.requests, used.input, used.cached, used.output, used.reasoning


def summed(requests: Iterable[Request], key: Callable[[Request], str]) -> dict[str, Row]:
    """Sum requests up one by one."""
    sums: dict[str, Used] = {}
    for request in requests:
        sums.setdefault(key(request), Used()).add(request.tokens)
    return {name: numbers(used) for name, used in sums.items()}


def requests_of(truth: Truth) -> list[Request]:
    """Return all requests of a home."""
    return [request for session in truth.sessions.values() for request in session.requests]


def cost_of(requests: Iterable[Request], prices: Prices = PRICES) -> float:
    """Return what requests cost, each priced for itself."""
    total = 0.0
    for ms, model, _, tokens in requests:
        price = prices.of(model, ms)
        assert price is not None
        cost = price.cost(tokens.input, tokens.cached, tokens.write, tokens.output)
        assert cost is not None
        total += cost
    return total


def assert_exact(told: Json, truth: Truth) -> None:
    """Compare all that an index tells with the truth."""
    assert row(told["totals"]) == numbers(truth.total)
    for group_by, sums in (
        ("day", truth.by_day),
        ("model", truth.by_model),
        ("cwd", truth.by_cwd),
        ("thread", {id_: used for id_, used in truth.by_session.items() if used.requests}),
    ):
        grouped = rows({"groups": told[group_by]})
        expected = {key: numbers(used) for key, used in sums.items()}
        assert grouped == expected, f"by {group_by}: {grouped} instead of {expected}"
    assert told["sessions_read"] == len(truth.sessions)
    assert told["unreadable"] == len(truth.unreadable)
    listed = [each["thread_id"] for each in told["sessions"]]
    assert len(listed) == len(set(listed)), "told twice"
    assert set(listed) == set(truth.sessions)
    for each in told["sessions"]:
        session = truth.sessions[each["thread_id"]]
        found, expected = facts(each), true_facts(session, truth)
        assert found == expected, f"{session.kind}: {found} instead of {expected}"
        assert abs(each["cost_usd"] - cost_of(session.requests)) < 1e-5


def facts(told: Json) -> Json:
    """Return what a list tells of a thread, to be compared with `true_facts`."""
    path = Path(told["rollout_path"])
    tail = path.parts[path.parts.index("archived_sessions" if told["archived"] else "sessions") :]
    return {
        **{key: told[key] for key in ("title", "cwd", "model", "archived", "name", "status")},
        "turns": told["turn_count"],
        "used": tuple(told["usage"].values()),
        "path": "/".join(tail),
        "parents": {told["parent_thread_id"], told["forked_from_id"]} - {None},
        "active": told["last_active_at"],
    }


def true_facts(session: Session, truth: Truth) -> Json:
    """Return what a list should tell of a thread."""
    _, *used = numbers(session.used)
    active = datetime.fromtimestamp(session.active_ms / 1000, UTC)
    return {
        "title": session.prompt[:120],
        "cwd": session.cwd,
        "model": session.model,
        "archived": session.archived,
        "name": truth.names.get(session.thread_id),
        "status": _STATUSES[session.ending],
        "turns": session.turns,
        "used": (*used, session.used.input + session.used.output),
        "path": session.path,
        "parents": {session.parent} - {None},
        "active": active.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }


# What it does to files.


def bytes_read() -> int:
    """Return how many bytes this process has read so far, of whatever."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar: "):
            return int(line.split()[1])
    raise AssertionError("no rchar")


def marks(home: Path) -> dict[str, tuple[str, int]]:
    """Return a hash of each file below a home, and when it was changed."""
    return {
        str(path.relative_to(home)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


_watched: list[tuple[str, list[tuple[str, int]]]] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | bytes | os.PathLike):
        name = os.fsdecode(cast("str", arguments[0]))
        for below, seen in _watched:
            if name.startswith(below):
                seen.append((name, int(arguments[2])))


sys.addaudithook(_watch)


@contextmanager
def opened_files(below: Path) -> Generator[list[tuple[str, int]]]:
    """Note each file below a folder that this process opens, and its flags."""
    seen: list[tuple[str, int]] = []
    entry = (f"{below}{os.sep}", seen)
    _watched.append(entry)
    try:
        yield seen
    finally:
        _watched.remove(entry)


def rollouts_in(seen: Sequence[tuple[str, int]]) -> list[str]:
    """Return the names of the rollouts among opened files."""
    return [Path(name).name for name, _ in seen if Path(name).name.startswith("rollout-")]


def for_writing(seen: Sequence[tuple[str, int]]) -> list[str]:
    """Return those of opened files that were opened for more than reading."""
    return [name for name, flags in seen if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)]


# Processes of their own.


class Indexers:
    """Starts processes that index a home; each is a fork of one that has imported all."""

    def __init__(self) -> None:
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "support.index_process"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._answer() == 0

    def __enter__(self) -> Indexers:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.close()
        self._nursery.wait()
        self._nursery.stdout.close()

    def start(self, home: Path, state: Path, **options: Any) -> int:
        """Start one and return its process id; see `indexer.py` for the options."""
        return self._ask({"home": str(home), "state": str(state)} | options)

    def ended(self, pid: int) -> int:
        """Wait for the end of one; return its exit status, negative after a signal."""
        return self._ask({"wait": pid})

    def _ask(self, what: Json) -> int:
        assert self._nursery.stdin is not None
        self._nursery.stdin.write(json.dumps(what).encode() + b"\n")
        self._nursery.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self._nursery.stdout is not None
        return int(self._nursery.stdout.readline())


# Rollouts by the line.


def thread_id(number: int) -> str:
    """Return a UUID, version 7, of 2025; a greater number gives a later one."""
    return f"01954000-{number:04x}-7000-8000-{number:012x}"


@dataclass
class Rollout:
    """A thread while it is written, as Codex 0.60.1 does or, *paginated*, 0.169."""

    home: Path
    number: int = 1
    paginated: bool = False
    cwd: str = "/project"
    model: str = "gpt-5.1-codex-max"
    archived: bool = False
    ms: int = int(START.timestamp() * 1000)
    meta: Json = field(default_factory=dict[str, Any])
    """More for the session_meta."""
    segment: int = 0
    """The number of a later segment's id; 0 for the first."""
    ending: str = ".jsonl"
    """The end of the file's name."""
    sandbox: str = "read-only"
    lines: list[bytes] = field(default_factory=list[bytes])
    total: int = 0
    turn: int = 0
    requests: list[Request] = field(default_factory=list[Request])

    def __post_init__(self) -> None:
        mode = {"history_mode": "paginated"} if self.paginated else {}
        version = "0.169.0" if self.paginated else "0.60.1"
        self.put(
            "session_meta",
            {"id": self.id, "timestamp": _stamp(self.ms), "cwd": self.cwd}
            | {"cli_version": version, "source": "exec"}
            | mode
            | self.meta,
        )

    @property
    def id(self) -> str:
        return thread_id(self.number)

    @property
    def path(self) -> Path:
        segment = f"_{self.segment_id}" if self.segment else ""
        name = f"rollout-2025-02-20T00-00-00-{self.id}{segment}{self.ending}"
        if self.archived:
            return self.home / "archived_sessions" / name
        return self.home / "sessions" / "2025" / "02" / "20" / name

    @property
    def segment_id(self) -> str:
        return thread_id(self.segment or self.number)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return sum(len(line) + 1 for line in self.lines)

    @property
    def turn_id(self) -> str:
        return thread_id(self.number + 0x1000 + self.segment + self.turn)

    def next_segment(self, segment: int, end: int | None, **more: Any) -> Rollout:
        """Return the segment that a person begins who takes the turns after *end* back.

        *end* is an offset in this segment; None if all turns are taken back.
        """
        base = {"thread_id": self.segment_id, "end_ordinal_exclusive": 1, "end_byte_offset": end}
        meta = self.meta | {"history_base": base if end is not None else None}
        return Rollout(
            self.home, self.number, True, ms=self.ms + 1000, meta=meta, segment=segment, **more
        )

    def put(self, kind: str, payload: Json) -> Rollout:
        """Add a line."""
        ordinal = {"ordinal": len(self.lines)} if self.paginated else {}
        entry = {"timestamp": _stamp(self.ms)} | ordinal | {"type": kind, "payload": payload}
        self.lines.append(json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode())
        self.ms += 100
        return self

    def event(self, kind: str, **more: Any) -> Rollout:
        return self.put("event_msg", {"type": kind} | more)

    def item(self, kind: str, **more: Any) -> Rollout:
        return self.put("response_item", {"type": kind} | more)

    def ask(self, prompt: str) -> Rollout:
        """Begin a turn."""
        self.turn += 1
        context = {"cwd": self.cwd, "model": self.model, "sandbox_policy": {"type": self.sandbox}}
        if not self.paginated:
            self.event("user_message", message=prompt, images=[])
            return self.put("turn_context", context)
        turn = {"turn_id": self.turn_id}
        self.event("task_started", **turn)
        self.put("turn_context", turn | context)
        part: Json = {"type": "text", "text": prompt, "text_elements": []}
        item: Json = {"type": "UserMessage", "id": "u", "content": [part]}
        return self.event("item_completed", thread_id=self.id, **turn, item=item)

    def use(
        self, input_: int, output: int = 7, limits: Json | None = None, response: str = ""
    ) -> Rollout:
        """Make a request; with the id of its *response*, as 0.163 and later record it."""
        self.total += input_
        tokens = Tokens(input_, 0, 0, output, 0)
        self.requests.append(Request(self.ms, self.model, self.cwd, tokens))
        info = {
            "total_token_usage": json.loads(Tokens(self.total, 0, 0, output, 0).old()),
            "last_token_usage": json.loads(tokens.old()),
        }
        if response:
            usage = info["last_token_usage"]
            record: Json = {"thread_id": self.id, "response_id": response, "usage": usage}
            self.put("token_usage_record", record)
        nothing = {"primary": None, "secondary": None, "credits": None}
        return self.event("token_count", info=info, rate_limits=limits or nothing)

    def answer(self, text: str) -> Rollout:
        """End a turn."""
        if self.paginated:
            return self.event(
                "task_complete", turn_id=self.turn_id, last_agent_message=text, duration_ms=1500
            )
        self.event("agent_message", message=text)
        content = [{"type": "output_text", "text": text}]
        return self.item("message", role="assistant", content=content)

    def save(self, *, mtime_ms: int | None = None) -> Rollout:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"".join(line + b"\n" for line in self.lines))
        changed = (self.ms if mtime_ms is None else mtime_ms) * 1_000_000
        os.utime(self.path, ns=(changed, changed))
        return self


def name_threads(home: Path, names: Mapping[str, str | None]) -> None:
    """Give threads names, as Codex does."""
    lines = (json.dumps({"id": id_, "thread_name": name}) + "\n" for id_, name in names.items())
    with (home / "session_index.jsonl").open("a") as file:
        file.writelines(lines)


def _stamp(ms: int) -> str:
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z"
