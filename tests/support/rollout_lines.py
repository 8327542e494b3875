"""Build rollouts line by line, read them, and define a sample thread of each kind.

Each request has its own number of input tokens, so a list of these numbers shows which requests
were counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from codex_tools.codex.json_object import Json
from codex_tools.rollouts.files import blocks, ids_of
from codex_tools.rollouts.line import Counts
from codex_tools.rollouts.thread_reader import ThreadReader
from codex_tools.rollouts.token_counter import each_request
from codex_tools.rollouts.turn_reader import Turn, read_turns, segment_of

PARENT = "01a203da-44d3-7691-b0ab-2028070f8cec"
OLD_TURN = "01a203da-9ef9-7441-827b-ac0c97c81a88"
THREAD = "01a20661-b445-73e1-b566-c552cde98ccd"
TURN = "01a20661-b464-7331-a5c0-132af57480e6"
NEXT_TURN = "01a20661-c872-7a83-9064-a07f7334751f"

BEGIN = datetime(2026, 11, 23, 3, 9, 56, 214_000, tzinfo=UTC)
PARENT_COMMAND = "what the parent did"


class Models:
    """Number the contexts of requests in the order in which they appear."""

    def __init__(self) -> None:
        self.known: list[tuple[str | None, str | None]] = []
        self.tiers: list[str | None] = []

    def number(self, model: str | None, cwd: str | None, tier: str | None) -> int:
        for number, known in enumerate(zip(self.known, self.tiers, strict=True)):
            if known == ((model, cwd), tier):
                return number
        self.known.append((model, cwd))
        self.tiers.append(tier)
        return len(self.known) - 1


# Lines as Codex writes them: 0.60.1 unless a comment names another version.


def line(kind: str, payload: Json) -> Json:
    return {"type": kind, "payload": payload}


def event(kind: str, **more: Any) -> Json:
    return line("event_msg", {"type": kind} | more)


def item(kind: str, **more: Any) -> Json:
    return line("response_item", {"type": kind} | more)


def meta(thread_id: str = THREAD, **more: Any) -> Json:
    payload: Json = {"id": thread_id, "timestamp": "2026-11-23T03:09:56.100Z", "cwd": "/made/in"}
    payload |= {"originator": "codex_exec", "cli_version": "0.60.1", "source": "exec"}
    return line("session_meta", payload | more | {"git": {"branch": "feat/x"}})


def new_meta(thread_id: str = THREAD, *, mode: str = "paginated", **more: Any) -> Json:
    """Return the session_meta of 0.169.0."""
    payload: Json = {"account_scoped": True, "session_id": thread_id, "id": thread_id}
    payload |= more.pop("first", {})
    payload |= {"timestamp": "2026-11-23T03:09:56.100Z", "cwd": "/made/in"}
    payload |= {"cli_version": "0.169.0", "source": "exec", "thread_source": "user"} | more
    payload |= {"base_instructions": {"text": "Be helpful."}, "history_mode": mode, "git": {}}
    return line("session_meta", payload)


def context(model: str = "gpt-5.5", cwd: str = "/project", turn_id: str | None = None) -> Json:
    turn = {"turn_id": turn_id, "root_turn_id": turn_id} if turn_id else {}
    return line("turn_context", turn | {"cwd": cwd, "approval_policy": "never", "model": model})


def tokens(input_: int, write: int | None = None) -> Json:
    """Return the counts of a reading; Codex 0.169 also writes *write*."""
    writes = {} if write is None else {"cache_write_input_tokens": write}
    return (
        {"input_tokens": input_, "cached_input_tokens": 5}
        | writes
        | {"output_tokens": 7, "reasoning_output_tokens": 3, "total_tokens": input_ + 7}
    )


def settings(tier: str | None = None, thread_id: str | None = THREAD, **more: Any) -> Json:
    """Return what 0.163.0 writes before a turn; without a tier it leaves the field out."""
    named = {} if tier is None else {"service_tier": tier}
    applied = {"model": "gpt-5.5", "model_provider_id": "openai"} | named | more
    thread = {} if thread_id is None else {"thread_id": thread_id}
    return event("thread_settings_applied", **thread, thread_settings=applied)


def limits(percent: float | None) -> Json:
    window = percent and {"used_percent": percent, "window_minutes": 300, "resets_at": 1795364521}
    return {"primary": window, "secondary": None, "credits": None}


def told(total: Json, last: Json, percent: float | None = None) -> Json:
    info = {"total_token_usage": total, "last_token_usage": last, "model_context_window": 258400}
    return event("token_count", info=info, rate_limits=limits(percent))


def count(total: int, last: int, percent: float | None = None) -> Json:
    return told(tokens(total), tokens(last), percent)


def new_count(total: int, last: int, percent: float | None = None) -> Json:
    return told(tokens(total, 0), tokens(last, 0), percent)


def no_count(percent: float | None = None) -> Json:
    return event("token_count", info=None, rate_limits=limits(percent))


def record(last: int, response_id: str | None = None, thread_id: str = THREAD) -> Json:
    usage = tokens(last, 0)
    return line("token_usage_record", {
        "thread_id": thread_id,
        "turn_id": TURN,
        "session_id": thread_id,
        "root_turn_id": TURN,
        "response_id": response_id or f"resp_{last}",
        "usage": usage,
        "turn_token_usage": tokens(777_777, 0),
        "thread_token_usage": tokens(888_888, 0),
    })  # fmt: skip


def started(turn_id: str = TURN) -> Json:
    return event("task_started", turn_attribution={"turn_id": turn_id}, turn_id=turn_id)


def ended(turn_id: str = TURN, **error: Any) -> Json:
    return event("task_complete", turn_id=turn_id, last_agent_message="done", **error)


def aborted() -> Json:
    return event("turn_aborted", turn_id=TURN, reason="interrupted")


def asked(prompt: str) -> Json:
    return event("user_message", message=prompt, images=[])


def new_asked(prompt: str, turn_id: str = TURN) -> Json:
    part: Json = {"type": "text", "text": prompt, "text_elements": []}
    user: Json = {"type": "UserMessage", "id": "u", "content": [part]}
    return event("item_completed", thread_id=THREAD, turn_id=turn_id, item=user)


def said(text: str = "done") -> Json:
    return event("agent_message", message=text)


def answered(text: str = "done") -> Json:
    content = [{"type": "output_text", "text": text}]
    return item("message", role="assistant", content=content)


def prompted(text: str) -> Json:
    return item("message", role="user", content=[{"type": "input_text", "text": text}])


def call() -> Json:
    return item("function_call", name="shell_command", arguments="{}", call_id="c")


def output(text: str) -> Json:
    return item("function_call_output", call_id="c", output=text)


def clock(ms: int) -> str:
    at = BEGIN + timedelta(milliseconds=ms)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z"


def stamped(lines: Sequence[Json]) -> list[Json]:
    """Add a time to each line, 100 ms apart or `at_ms`, and an ordinal in paginated history."""
    found: list[Json] = []
    paginated, ms = False, 0
    for n, each in enumerate(lines):
        ms = each.get("at_ms", ms)
        paginated = each.get("paginated", paginated or _says_paginated(each))
        ordinal = {"ordinal": n} if paginated else {}
        type_and_payload = {"type": each["type"], "payload": each["payload"]}
        found.append({"timestamp": clock(ms)} | ordinal | type_and_payload)
        ms += 100
    return found


def _says_paginated(each: Json) -> bool:
    return each["type"] == "session_meta" and each["payload"].get("history_mode") == "paginated"


def plain(entry: Json) -> str:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False)


def spaced(entry: Json) -> str:
    return json.dumps(entry)


def written(*lines: Json, form: Callable[[Json], str] = plain) -> bytes:
    return "".join(form(each) + "\n" for each in stamped(lines)).encode()


COUNT_LINE = plain(stamped([count(999, 999)])[0])


def ms_of(ms: int) -> int:
    return round(BEGIN.timestamp() * 1000) + ms


# Reading.


@dataclass
class Read:
    """All results of a reader, in a form that can be compared."""

    inputs: list[int]
    requests: list[tuple[int, str | None, str | None, tuple[int, ...]]]
    facts: Json = field(default_factory=dict[str, Any])
    tiers: list[str | None] = field(default_factory=list[str | None])
    """The service tier of each request."""


FACTS = (
    *("thread_id", "has_meta", "created_ms", "active_ms", "source", "is_subagent"),
    *("parent_id", "forked_id", "cli_version", "git_branch", "is_paginated", "is_damaged"),
    *("model", "cwd", "title", "turns", "ending", "limits", "limits_ms", "other_limits"),
    *("bad_lines", "tier"),
    *("offset", "own_offset", "is_readable", "in_own_part"),
)


def told_by(reader: ThreadReader, models: Models, earlier: Sequence[int] | None = None) -> Read:
    requests = [*(earlier or ()), *reader.requests]
    found = [(ms, *models.known[n], tuple(used)) for ms, n, *used, _ in each_request(requests)]
    facts: Json = {name: getattr(reader, name) for name in FACTS}
    facts["limits"] = json.loads(reader.limits or "null")
    tiers = [models.tiers[n] for _, n, *_ in each_request(requests)]
    return Read([used[0] for *_, used in found], found, facts, tiers)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def fed(*blocks: bytes) -> ThreadReader:
    reader = ThreadReader(THREAD, Models())
    for block in blocks:
        reader.feed(block)
    reader.finish()
    return reader


def read(data: bytes, size: int | None = None) -> Read:
    models = Models()
    reader = ThreadReader(THREAD, models)
    for block in pieces(data, size or len(data) or 1):
        reader.feed(block)
    reader.finish()
    return told_by(reader, models)


def counted(*lines: Json) -> list[int]:
    """Return the input tokens of each counted request; no line may be bad.

    The lines are read twice: as Codex writes them, and with spaces, which the reader parses on
    its slower way. Both must give the same requests.
    """
    found, odd = read(written(*lines)), read(written(*lines, form=spaced))
    assert found.facts["bad_lines"] == odd.facts["bad_lines"] == 0
    assert found.requests == odd.requests
    return found.inputs


def resumed(data: bytes, cut: int) -> Read | None:
    """Read up to *cut*, then continue with another reader; None if that is impossible."""
    models = Models()
    first = ThreadReader(THREAD, models)
    first.feed(data[:cut])
    first.finish()
    if not first.in_own_part:
        return None
    second = ThreadReader(THREAD, models)
    second.restore(first.state(), first.requests, first.marks, first.all_limits)
    second.feed(data[first.offset :])
    second.finish()
    return told_by(second, models, first.requests)


def turns_in(path: Path, before: int | None, count: int) -> tuple[list[Turn], int]:
    """Return turns of a thread that has one rollout, which is read whole."""
    reader = ThreadReader(ids_of(path.name)[0], Models())
    for block in blocks(path):
        reader.feed(block)
    reader.finish()
    return read_turns([segment_of(path, reader)], before, count)


def readings(*lines: Json, thread_id: str = PARENT) -> list[tuple[Counts, Counts]]:
    reader = ThreadReader(thread_id, Models())
    reader.keep_counts()
    reader.feed(written(*lines))
    reader.finish()
    assert reader.counts is not None
    return reader.counts


# Whole threads of each kind, and the requests of them that count.

OLD = (
    meta(),
    prompted("<environment_context>\n  <cwd>/project</cwd>\n</environment_context>"),
    prompted("do it"),
    asked("do it"),
    context(),
    no_count(),
    count(101, 101, 10.5),
    call(),
    output("Exit code: 0"),
    context(),
    count(101, 101),
    count(203, 102),
    said(),
    count(203, 102, 12.5),
    count(306, 103, 13.5),
    answered(),
    prompted("and now?"),
    asked("and now?"),
    context("gpt-5.1-codex-max", "/else"),
    no_count(),
    said("later"),
    count(104, 104),
    answered("later"),
)
NEW = (
    new_meta(),
    started(),
    context(turn_id=TURN),
    prompted("do it"),
    new_asked("do it"),
    call(),
    record(101),
    output("fine"),
    new_count(101, 101, 10.5),
    answered(),
    record(102),
    new_count(203, 102),
    ended(),
    new_count(203, 0) | {"at_ms": 5000},
    line("compacted", {"message": "all of it"}),
    started(NEXT_TURN),
    context("gpt-5.4", turn_id=NEXT_TURN),
    new_asked("and now?", NEXT_TURN),
    no_count(),
    aborted(),
)
MIXED = (
    *OLD,
    started(),
    context("gpt-5.4", turn_id=TURN),
    asked("as a newer one"),
    record(105),
    new_count(209, 105, 20.5),
    said(),
    record(106),
    new_count(315, 106),
    ended(),
    asked("as the older one"),
    context("gpt-5.1-codex-max"),
    no_count(),
    count(107, 107),
    said(),
    answered(),
)
COPY = (
    meta(PARENT),
    asked("the parent's"),
    context("gpt-5.2-codex"),
    no_count(),
    new_count(901, 901),
    new_count(901, 901),
    output(PARENT_COMMAND),
    new_count(1803, 902),
    said("the parent's"),
    answered("the parent's"),
    aborted(),
)
LEGACY_FORK = (
    new_meta(mode="legacy", first={"forked_from_id": PARENT}),
    *COPY,
    started(OLD_TURN),
    record(903, thread_id=PARENT),
    new_count(2706, 903),
    ended(OLD_TURN),
    started(),
    context("gpt-5.4", turn_id=TURN),
    asked("my own"),
    record(101),
    new_count(2807, 101),
    said(),
    answered(),
    record(102),
    new_count(2909, 102, 20.5),
    ended(),
)
CONTEXT_AGENT = (
    new_meta(
        first={"forked_from_id": PARENT, "parent_thread_id": PARENT},
        source={"subagent": {"thread_spawn": {"parent_thread_id": PARENT, "depth": 1}}},
        thread_source="subagent",
    ),
    new_meta(PARENT),
    started(OLD_TURN),
    context("gpt-5.2-codex", turn_id=OLD_TURN),
    prompted("the parent's"),
    started(),
    context("gpt-5.4", turn_id=TURN),
    new_asked("my own"),
    record(101),
    new_count(101, 101),
    ended(),
)
MIGRATED_FORK = (
    new_meta(first={"forked_from_id": PARENT}, cli_version="0.60.1"),
    started(OLD_TURN),
    *(each for each in COPY if each["type"] != "session_meta"),
    ended(OLD_TURN),
    started(),
    context("gpt-5.4", turn_id=TURN),
    new_asked("my own"),
    record(101),
    new_count(1904, 101),
    ended(),
)
SAMPLES = {
    "old": (OLD, [101, 102, 103, 104]),
    "new": (NEW, [101, 102]),
    "mixed": (MIXED, [101, 102, 103, 104, 105, 106, 107]),
    "legacy fork": (LEGACY_FORK, [101, 102]),
    "context agent": (CONTEXT_AGENT, [101]),
    "migrated fork": (MIGRATED_FORK, [101]),
}
each_sample = pytest.mark.parametrize(("lines", "inputs"), SAMPLES.values(), ids=SAMPLES)
