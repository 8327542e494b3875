"""What one rollout tells: whose thread it is, what it used, how it stands.

Most of a rollout is what the model read. So only the lines that count are
parsed; what is not written as Codex writes it now goes a slower way to the same
result. A line that makes no sense is counted and left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import repeat
from operator import attrgetter
from typing import cast

import orjson

from codex_tools.rollouts.line import (
    AGENT,
    COMPLETED,
    CONTEXT,
    COUNT,
    COUNT_HEAD,
    FLAT,
    ITEM,
    KNOWN_KINDS,
    LIMITS,
    META,
    NOWHERE,
    ODD,
    PASS,
    PROMPT,
    RECORD,
    RECORD_HEAD,
    STARTED,
    Counts,
    Json,
    classify,
    counts_in,
    inner,
    last_usual,
    loads,
    ms_at,
    ms_of,
    start_of,
    text_of,
    user_text,
    without_instructions,
)
from codex_tools.rollouts.token_counter import REQUEST_FIELDS, TokenCounter

TITLE_LIMIT = 200
LINE_LIMIT = 16 * 1024 * 1024
"""Bytes of a line that counts; longer ones are left out and told of."""

_CALLS = (
    b'"payload":{"type":"function_call',
    b'"payload":{"type":"custom_tool_call',
    b'"payload":{"type":"local_shell_call',
)
_USER_ITEM = b'"item":{"type":"UserMessage"'
_ANSWER = b'"payload":{"type":"message","role":"assistant"'
_UNMARKED = ("asked", "said", "answered")

FACTS = (
    *("thread_id", "created_ms", "cwd", "git_branch", "source", "is_subagent", "model"),
    *("cli_version", "parent_id", "forked_id", "title", "turns", "ending", "is_paginated"),
    *("is_damaged", "own_offset", "bad_lines", "limits_ms", "limits"),
)
"""What a reader tells of its thread, by the names of its attributes."""
_STATE = (
    *("offset", "known", "active_ms", "_in_turn", "_replay", "_own", "_recorded", "_doubtful"),
    *("_skipping", "_prompted", "_added"),
)

facts_of = attrgetter(*FACTS)
"""Returns the FACTS of a reader."""
_state_of = attrgetter(*_STATE)


@dataclass(slots=True, eq=False)
class ThreadReader(TokenCounter):
    """One rollout as far as it has been read; its attributes are for reading.

    Feed it the file's bytes in order, then call `finish`. `state` and `restore`
    let a later reader go on at `offset`.
    """

    offset: int = 0
    """Bytes taken, whole lines only."""
    own_offset: int = 0
    """Where the thread's own part begins."""
    active_ms: int | None = None
    is_damaged: bool = False
    """Whether an old Codex has written into paginated history: no Codex resumes it again."""
    title: str | None = None
    """The first prompt."""
    turns: int = 0
    ending: str = ""
    """How the last turn stands: open, completed, failed, interrupted; where this Codex
    does not mark a turn's end (before 0.98), asked, said or answered."""
    marks: list[tuple[int, int, int]] = field(default_factory=lambda: [])
    """Each turn's offset, time (ms) and number of requests before it."""
    _context_line: bytes = b""
    _in_turn: bool = False
    _prompted: bool = False
    """Whether the turn has its prompt."""
    _added: tuple[int, int] | None = None
    """Time (ms) and offset of the newest prompt after it."""
    _answered_at: int = -1
    _rest: bytes = b""
    _base: int = 0
    _skipping: bool = False

    @property
    def is_readable(self) -> bool:
        """Whether this is a rollout at all."""
        return self.known or bool(self.requests)

    def state(self) -> str:
        """Return what `restore` needs besides the facts and the ids of responses."""
        return orjson.dumps((*_state_of(self), self._total.decode("utf-8", "replace"))).decode()

    def restore(self, facts: Sequence[object], state: str, responses: Iterable[bytes]) -> None:
        """Go on from where another reader was."""
        *values, total = orjson.loads(state)
        for name, value in zip((*FACTS, *_STATE), (*facts, *values), strict=True):
            setattr(self, name, value)
        self._total = total.encode()
        self._recorded = None if self._recorded is None else cast(Counts, tuple(self._recorded))
        self._record_head = RECORD_HEAD % self.thread_id.encode()
        self.responses.update(responses)

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the file.

        One loop over all lines, with what is frequent done in place: it decides
        how long a home takes to read.
        """
        if self._skipping:
            end = block.find(b"\n") + 1
            self.offset += end or len(block)
            if not end:
                return
            self._skipping, block = False, block[end:]
        data = self._rest + block if self._rest else block
        self._rest = b"" if data.endswith(b"\n") else data[data.rfind(b"\n") + 1 :]
        is_torn = bool(self._rest)
        self._base = self.offset
        self._answered_at = -1
        known = KNOWN_KINDS.get
        counts = self._count_lines
        line, cut, at = b"", NOWHERE, 0
        # One line exists at a time, and in C: splitting the block costs twice as much.
        lines = BytesIO(data)
        for line in lines:
            kind = known(line[cut])
            if kind is None:
                if is_torn and line[-1] != 0x0A:
                    break
                kind, cut = classify(line)
                at = cut.start + 8
                if cut is FLAT and self.is_paginated:
                    self.is_damaged = True
            if kind == PASS:
                continue
            if is_torn and line[-1] != 0x0A:
                break
            if kind == COUNT:
                # From token_count","info":{"total_token_usage":{ on.
                total = line[at + 71 : line.find(b"}", at) + 1]
                if self._plain:
                    counts.append(line)
                    # Most tell nothing new: a re-emission, or what a record has told.
                    if total == self._total and total:
                        continue
                if line[at + 30 : at + 72] != COUNT_HEAD:
                    self._take_rare_count(line, at + 30)
                elif (
                    self._recorded is not None
                    and self._plain
                    and not self._doubtful
                    and not self._is_same(total)
                ):
                    self._total, self._recorded = total, None
                elif not self._take_count(line, total, at + 71 + len(total)):
                    self._take_line(line, 0)
            elif kind == RECORD:
                if not self._take_record(line, at):
                    self._take_line(line, 0)
            elif kind == ITEM:
                if (
                    self.title is None
                    and line.find(_USER_ITEM, at, at + 270) >= 0
                    and (payload := self._payload_of(loads(line))) is not None
                ):
                    self._take_item(payload)
            elif kind == CONTEXT and line[at:] == self._context_line:
                pass  # 0.60.1 repeats it before each request.
            elif kind == COMPLETED and self._plain and line.find(b'"error":', at) < 0:
                self._in_turn, self.ending = False, "completed"
            else:
                pos = lines.tell() - len(line)
                if kind == AGENT:
                    if self.ending in _UNMARKED and line.startswith(b"agent_message", at + 30):
                        self.ending, self._answered_at = "said", pos
                elif kind == STARTED and self._plain and (ms := ms_at(line)):
                    self._begin_task(ms, pos)
                elif kind == PROMPT and (ms := ms_at(line)):
                    payload = {} if self.title else self._payload_of(loads(line))
                    if payload is not None:
                        self._take_prompt(payload, ms, pos)
                elif kind == CONTEXT:
                    self._context_line = line[at:]
                    if (payload := self._payload_of(loads(line))) is not None:
                        self._take_context(payload, pos)
                elif kind == META:
                    payload = self._payload_of(loads(without_instructions(line)))
                    if payload is not None:
                        self._take_meta(payload)
                        self.created_ms = self.created_ms or ms_at(line)
                    if self.is_paginated:
                        cut = NOWHERE  # Lines without ordinals are wrong from here on.
                elif kind == ODD:
                    if line.strip():
                        self._take_entry(loads(line), 0, pos)
                else:
                    self._take_line(line, pos)
        while counts and counts[-1].find(LIMITS) < 0:
            counts.pop()
        del counts[:-1]
        if is_torn or start_of(line) < 0:
            line = last_usual(data, len(data) - len(self._rest))
        self.active_ms = ms_at(line) or self.active_ms
        if self.ending in ("said", "answered"):
            since = max(self._answered_at, 0)
            if max(map(data.find, _CALLS, repeat(since))) >= 0:
                self.ending = "asked"
            elif data.find(_ANSWER, since) >= 0:
                self.ending = "answered"
        self.offset = self._base + len(data) - len(self._rest)
        if len(self._rest) > LINE_LIMIT:
            self._leave_out()

    def finish(self, parent: Sequence[tuple[Counts, Counts]] | None = None) -> None:
        """Take note that the file has no more for now.

        Args:
            parent: The readings of the thread that a legacy fork was copied from.
        """
        rest = self._rest
        if rest.rstrip().endswith(b"}"):
            # Whole though its line feed is missing: it may never come.
            try:
                orjson.loads(rest)
            except orjson.JSONDecodeError:
                pass
            else:
                self.feed(b"\n")
                self.offset -= 1
        if self._count_lines:
            self._keep_limits(self._count_lines.pop())
        if self._pending:
            self._settle(parent)

    @property
    def needs_parent(self) -> str | None:
        """The thread whose readings `finish` needs to tell the copy from the thread's own part."""
        return self.forked_id or self.parent_id if self._pending else None

    def _leave_out(self) -> None:
        """Give up what was read of an endless line, but for its beginning."""
        head = self._rest[:400]
        if b'"type":"response_item"' not in head and b'"type":"compacted"' not in head:
            self.bad_lines += 1
        self._skipping = True
        self.offset += len(self._rest)
        self._rest = b""

    def _take_line(self, line: bytes, pos: int) -> None:
        """Take a line that counts and is not frequent."""
        self._take_entry(loads(line), ms_at(line), pos)

    def _take_entry(self, entry: Json | None, ms: int, pos: int) -> None:
        kind = entry.get("type") if entry is not None else None
        payload = self._payload_of(entry if isinstance(kind, str) else None)
        if entry is None or payload is None:
            return
        if not ms:
            found = ms_of(entry.get("timestamp"))
            self.active_ms = found or self.active_ms
            ms = found or self.active_ms or 0
        self._take(cast(str, kind), payload, ms, pos)

    def _take_rare_count(self, line: bytes, at: int) -> None:
        if line.startswith(b'token_count","info":null,', at) and line.find(LIMITS) < 0:
            self._forget_total()
        elif line.startswith(b'token_count"', at):
            self._take_line(line, 0)

    def _take(self, kind: str, payload: Json, ms: int, pos: int) -> None:
        match kind:
            case "session_meta":
                self._take_meta(payload)
                self.created_ms = self.created_ms or ms
            case "turn_context":
                self._take_context(payload, pos)
            case "token_usage_record":
                usage = counts_in(orjson.dumps(payload.get("usage")))
                if usage is None:
                    self.bad_lines += 1
                elif payload.get("thread_id") == self.thread_id:
                    self._record(usage, (text_of(payload, "response_id") or "").encode(), ms)
                else:
                    self._recorded, self._doubtful = usage, False
            case "event_msg":
                self._take_message(payload, ms, pos)
            case _:
                pass

    def _take_context(self, payload: Json, pos: int) -> None:
        self._begin_own(payload, pos)
        self.model = text_of(payload, "model")
        self.cwd = text_of(payload, "cwd") or self.cwd
        self._context = None
        if self._in_turn and "turn_id" not in payload:
            self._leave_task()

    def _take_message(self, payload: Json, ms: int, pos: int) -> None:
        match payload.get("type"):
            case "token_count":
                self._take_odd_count(payload, ms)
            case "task_started":
                self._begin_own(payload, pos)
                if self.is_settled:
                    self._begin_task(ms, pos)
            case "task_complete" if self.is_settled:
                self._in_turn = False
                self.ending = "failed" if payload.get("error") else "completed"
            case "turn_aborted" if self.is_settled:
                self._in_turn, self.ending = False, "interrupted"
            case "user_message":
                self._take_prompt(payload, ms, pos)
            case "agent_message" if self.ending in _UNMARKED:
                self.ending, self._answered_at = "said", pos
            case "item_completed":
                self._take_item(payload)
            case _:
                pass

    def _begin_own(self, payload: Json, pos: int) -> None:
        if self._replay and not self._own:
            turn_id = text_of(payload, "turn_id")
            # Not "rollout-5": so `codex migrate-rollouts` calls turns that had no id.
            is_uuid = turn_id is not None and len(turn_id) == len(self.thread_id)
            if turn_id is not None and is_uuid and turn_id >= self.thread_id:
                self._own, self.own_offset = True, self._base + pos
                self._plain = self.counts is None
                self._pending.clear()

    def _begin_turn(self, ms: int, offset: int) -> None:
        self.turns += 1
        self.marks.append((offset, ms, len(self.requests) // REQUEST_FIELDS))

    def _begin_task(self, ms: int, pos: int) -> None:
        self._begin_turn(ms, self._base + pos)
        self._in_turn, self.ending = True, "open"
        self._prompted, self._added = False, None

    def _take_prompt(self, payload: Json, ms: int, pos: int) -> None:
        """Take a prompt: a turn's own, or what a person adds to it."""
        if not self.is_settled:
            return
        if not self._in_turn:
            self._begin_turn(ms, self._base + pos)
            self.ending = "asked"
        elif self._prompted:
            self._added = (ms, self._base + pos)
        else:
            self._prompted = True
        self._entitle(text_of(payload, "message"))

    def _take_item(self, payload: Json) -> None:
        item = inner(payload, "item")
        if self.is_settled and item.get("type") == "UserMessage":
            self._entitle(user_text(item))

    def _leave_task(self) -> None:
        """Give up a turn that was killed: a Codex without turn ids goes on with the thread."""
        self._in_turn = False
        if self._added is not None:
            self._begin_turn(*self._added)
            self.ending, self._added = "asked", None

    def _entitle(self, prompt: str | None) -> None:
        if self.title is None and prompt and (words := " ".join(prompt[:4000].split())):
            self.title = words[:TITLE_LIMIT]
