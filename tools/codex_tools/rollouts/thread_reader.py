"""Read one rollout: whose thread it is, what it used, and how its last turn ended.

Most lines of a rollout are what the model read, so only the lines that matter are parsed. A line
that is not written as Codex writes it now takes a slower way to the same result. A line that
makes no sense is counted in `bad_lines` and left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from operator import attrgetter
from typing import cast

import orjson

from codex_tools.codex.json_object import Json, object_of, text_of
from codex_tools.rollouts.line import (
    AGENT,
    COMPLETED,
    CONTEXT,
    COUNT,
    ITEM,
    KNOWN_KINDS,
    META,
    NO_HEAD,
    ODD,
    RECORD,
    SKIP,
    STARTED,
    UNNUMBERED,
    Counts,
    PartialLine,
    classify,
    has_start,
    last_usual,
    ms_at,
    ms_of,
    parse_line,
    records_in,
    start_of,
    user_text,
    without_instructions,
)
from codex_tools.rollouts.token_counter import REQUEST_FIELDS, RESPONSE_FIELD, TokenCounter

TITLE_LIMIT = 200

_RESPONSE = b'"type":"response_item"'
_COMPACTED = b'"type":"compacted"'
_CALLS = (
    _RESPONSE + b',"payload":{"type":"function_call',
    _RESPONSE + b',"payload":{"type":"custom_tool_call',
    _RESPONSE + b',"payload":{"type":"local_shell_call',
)
_ANSWER = _RESPONSE + b',"payload":{"type":"message","role":"assistant"'
_HEAD_OF_LINE = 150
"""Bytes of a line that contain the type of its payload."""
_STARTED_LIMIT = 1000
"""Bytes of a task_started that is not parsed; a longer one may have a record appended to it."""
_UNPARSED = (ITEM, CONTEXT, AGENT, STARTED, COMPLETED, ODD)
"""The kinds of lines that often need no parsing."""
_UNMARKED = ("asked", "said", "answered")
"""The endings of a Codex that does not mark the end of a turn."""

FACTS = (
    *("thread_id", "created_ms", "cwd", "git_branch", "source", "is_subagent", "model"),
    *("cli_version", "parent_id", "forked_id", "title", "turns", "ending", "is_paginated"),
    *("is_damaged", "own_offset", "bad_lines", "limits_ms", "limits", "active_ms", "has_meta"),
    *("base_id", "base_offset", "offset"),
)
"""The attributes of a reader that describe its rollout."""
_STATE = (
    *("_in_turn", "_has_copy", "_copy_ended", "_record", "_is_record_unsure"),
    *("_has_prompt", "_added_prompt"),
)
"""The further attributes in `state`; indexes on disk depend on their order."""

facts_of = attrgetter(*FACTS)
"""Returns the FACTS of a reader."""
_state_of = attrgetter(*FACTS, *_STATE)


@dataclass(slots=True)
class Mark:
    """Where a turn begins in its rollout."""

    offset: int
    ms: int
    """Time of the turn's start, in ms since 1970."""
    requests: int
    """Number of the rollout's requests before the turn."""
    former: str
    """The ending of the turn before."""
    end: int = 0
    """Offset of the first later turn that was taken back; 0 if the next turn follows this one."""
    requests_end: int = 0
    """Number of requests before *end*."""

    def row(self) -> tuple[int, int, int, str, int, int]:
        """Return the values, from which `Mark(*row)` makes the mark again."""
        return self.offset, self.ms, self.requests, self.former, self.end, self.requests_end


@dataclass(slots=True, eq=False)
class ThreadReader(TokenCounter):
    """One rollout as far as it has been read; its attributes are the results.

    Call `feed` with the file's bytes in order, then `finish`. Another reader can continue at
    `offset` after `restore` with this reader's `state`, `requests` and `marks`.
    """

    offset: int = 0
    """Bytes read, in whole lines."""
    own_offset: int = 0
    """Where the thread's own part begins, after a copy of another thread."""
    active_ms: int | None = None
    is_damaged: bool = False
    """True if an old Codex has written into paginated history: no Codex can resume it."""
    title: str | None = None
    """The first prompt."""
    turns: int = 0
    ending: str = ""
    """State of the last turn: open, completed, failed, interrupted. A Codex before 0.98 does not
    mark the end of a turn; its turns are asked, said or answered."""
    marks: list[Mark] = field(default_factory=lambda: [])
    """The turns, without those that a person has taken back."""
    _requests_before: int = 0
    """Number of requests before the last `restore`."""
    _context_line: bytes = b""
    """The last turn_context line of the current turn, without its time."""
    _in_turn: bool = False
    _has_prompt: bool = False
    """True if the current turn has its prompt."""
    _added_prompt: tuple[int, int] | None = None
    """Time (ms) and offset of the newest prompt that a person added to the current turn."""
    _answered_at: int = -1
    """Where the current block has the latest answer of an unmarked turn."""
    _data: bytes = b""
    """The current block, in whole lines except for the last one."""
    _block_offset: int = 0
    _partial_line: bytes = b""
    """The incomplete last line, if it began in the last block."""
    _spanning: PartialLine | None = None
    """The incomplete last line, if it began in an earlier block."""

    @property
    def is_readable(self) -> bool:
        """True if the file is a rollout."""
        return self.has_meta or bool(self.requests)

    def state(self) -> str:
        """Return the text that `restore` needs: a JSON array that begins with the FACTS."""
        return orjson.dumps((*_state_of(self), self._total.decode("utf-8", "replace"))).decode()

    def restore(self, state: str, requests: Sequence[int], marks: Iterable[Mark]) -> None:
        """Continue where another reader stopped."""
        *values, total = orjson.loads(state)
        for name, value in zip((*FACTS, *_STATE), values, strict=True):
            setattr(self, name, value)
        self._total = total.encode()
        self._record = None if self._record is None else cast(Counts, tuple(self._record))
        self._requests_before = len(requests) // REQUEST_FIELDS
        self.responses.update(filter(None, requests[RESPONSE_FIELD::REQUEST_FIELDS]))
        self.marks.extend(marks)
        self._context_line = b"unknown" if self._in_turn else b""

    def feed(self, block: bytes) -> None:
        """Read the next bytes of the file.

        This loop over all lines decides how long a home takes to read.
        """
        data = block
        if self._partial_line or self._spanning is not None:
            if b"\n" not in block:
                return self._hold(block)
            spanning = self._spanning
            data = self._partial_line + block if spanning is None else self._end(spanning, block)
        self._partial_line = b"" if data.endswith(b"\n") else data[data.rfind(b"\n") + 1 :]
        is_torn = bool(self._partial_line)
        self._data = data
        self._block_offset = self.offset
        self._answered_at = -1
        known = KNOWN_KINDS.get
        # Splitting the block costs twice as much as BytesIO, which makes one line at a time in C.
        lines = BytesIO(data)
        line, place = b"", NO_HEAD
        for line in lines:
            kind = known(line[place])
            if kind is None:
                if is_torn and line[-1] != 0x0A:
                    break
                kind, place = classify(line)
                if place is UNNUMBERED and self.is_paginated:
                    self.is_damaged = True
            if kind == SKIP:
                continue
            if is_torn and line[-1] != 0x0A:
                break
            if kind == COUNT:
                if self._take_count_text(line):
                    continue
            elif kind == ITEM and self.title is not None:
                continue  # Only a prompt matters, and only as the title.
            pos = lines.tell() - len(line)
            if kind in _UNPARSED and self._take_unparsed(kind, line, place.start, pos):
                continue
            if kind == META:
                self._take_line(without_instructions(line), pos)
                if self.is_paginated:
                    place = NO_HEAD  # From here on, a line without an ordinal means damage.
            else:
                self._take_line(line, pos, is_odd=kind == ODD)
        self._keep_newest_limits()
        if is_torn or start_of(line) < 0:
            line = last_usual(data, len(data) - len(self._partial_line))
        self.active_ms = ms_at(line) or self.active_ms
        if self.ending in ("said", "answered"):
            since = max(self._answered_at, 0)
            if any(has_start(data, call, since) for call in _CALLS):
                self.ending = "asked"
            elif has_start(data, _ANSWER, since):
                self.ending = "answered"
        self.offset = self._block_offset + len(data) - len(self._partial_line)
        self._data = b""

    def finish(self, parent: Sequence[tuple[Counts, Counts]] | None = None) -> None:
        """Read a last line without a line feed, and count what had to wait for the file's end.

        Args:
            parent: The readings of the thread that a legacy fork was copied from.
        """
        rest = self._partial_line if self._spanning is None else self._spanning.whole()
        # Codex may have been killed before it wrote the line feed of a complete line.
        if rest.rstrip().endswith(b"}") and _is_json(rest):
            self.feed(b"\n")
            self.offset -= 1
        if self._count_lines:
            self._take_limits(self._count_lines.pop())
        if self._pending:
            self._count_pending(parent)

    @property
    def needs_parent(self) -> str | None:
        """The thread whose readings `finish` needs; None if it needs none."""
        return self.forked_id or self.parent_id if self._pending else None

    def _hold(self, block: bytes) -> None:
        """Keep a block that does not end the incomplete last line."""
        if self._spanning is None:
            self._spanning = PartialLine(is_wanted=_may_matter)
            self._spanning.add(self._partial_line)
            self._partial_line = b""
        self._spanning.add(block)

    def _end(self, partial: PartialLine, block: bytes) -> bytes:
        """Return *block* with the partial line before it; take that line first if it is long."""
        self._spanning = None
        if not (head := partial.head):
            return partial.take() + block
        end = block.find(b"\n") + 1
        partial.add(block[:end])
        after = self.offset + partial.size
        self.active_ms = ms_at(head) or self.active_ms
        if line := partial.take():
            self.feed(line)
        elif _may_matter(head):
            self.bad_lines += 1
        self.offset = after
        return block[end:]

    def _take_unparsed(self, kind: int, line: bytes, start: int, pos: int) -> bool:
        """Take a line whose kind says enough; return False if it must be parsed.

        A cold index takes 1.1 times the CPU time if these lines are parsed as well.
        """
        if kind == ITEM:
            return not self.in_own_part
        if kind == CONTEXT:
            # 0.60.1 repeats it before each request.
            former, self._context_line = self._context_line, line[start:]
            if self._context_line == former:
                return True
            if former and self._in_turn:
                self._take_appended(pos)
            return False
        if kind == AGENT:
            if self.ending in _UNMARKED and b'"type":"agent_message"' in line[:_HEAD_OF_LINE]:
                self.ending, self._answered_at = "said", pos
            return True
        if kind == ODD:
            return line.isspace()
        if not self._counts_directly:
            return False
        if kind == COMPLETED and b'"error":' not in line and line.find(RECORD, 1) < 0:
            self._in_turn, self.ending = False, "completed"
            return True
        if kind == STARTED and len(line) < _STARTED_LIMIT and (ms := ms_at(line)):
            self._begin_marked_turn(ms, pos)
            return True
        return False

    def _take_line(self, line: bytes, pos: int, is_odd: bool = False) -> None:
        """Parse and take a line; *pos* is its offset in the block."""
        try:
            entry: Json = orjson.loads(line)
            kind: object = entry["type"]
            payload: Json = entry["payload"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            self.bad_lines += 1
            for record in records_in(line):
                if len(record) < len(line):
                    self._take_line(record, pos + line.find(record))
            return
        if not isinstance(kind, str) or type(payload) is not dict:
            self.bad_lines += 1
            return
        time = entry.get("timestamp")
        if is_odd:
            self.active_ms = ms_of(time) or self.active_ms
        match kind:
            case "event_msg":
                self._take_message(payload, time, pos)
            case "token_usage_record":
                self._take_record(payload, self._ms_of(time))
            case "turn_context":
                self._take_context(payload, pos)
            case "session_meta":
                self._take_meta(payload)
                self.created_ms = self.created_ms or self._ms_of(time)
            case _:
                pass

    def _take_appended(self, pos: int) -> None:
        """Begin the turn whose start was appended to a torn line, if there is one before *pos*.

        Most torn lines are passed over like any line of their kind. To look for this in each of
        them would take 1.08 times the CPU time of a cold index. Codex 0.120 writes task_started
        first when it resumes a thread, then a turn_context.
        """
        data = self._data
        since = self.marks[-1].offset - self._block_offset if self.marks else -1
        at = data.find(RECORD, max(since + 1, 1), pos)
        while at >= 0:
            if data[at - 1] != 0x0A:
                end = data.find(b"\n", at) + 1
                entry = parse_line(data[at:end]) or {}
                what = object_of(entry, "payload").get("type")
                is_whole = parse_line(data[data.rfind(b"\n", 0, at) + 1 : end]) is not None
                if what in ("task_started", "user_message") and not is_whole:
                    self._take_line(data[at:end], at)
            at = data.find(RECORD, at + 1, pos)

    def _take_context(self, payload: Json, pos: int) -> None:
        self._check_copy_end(payload, pos)
        self.model = text_of(payload, "model")
        self.cwd = text_of(payload, "cwd") or self.cwd
        self._context = None
        if self._in_turn and "turn_id" not in payload:
            self._leave_turn()

    def _ms_of(self, time: object) -> int:
        """Return a line's time in ms, or the latest known time if the line has none."""
        return ms_of(time) or self.active_ms or 0

    def _take_message(self, payload: Json, time: object, pos: int) -> None:
        match payload.get("type"):
            case "token_count":
                if payload.get("info") is None and not self._in_turn:
                    self._take_appended(pos)  # It is the first count of a process.
                self._take_count(payload, self._ms_of(time))
            case "task_started":
                self._check_copy_end(payload, pos)
                if self.in_own_part:
                    self._begin_marked_turn(self._ms_of(time), pos)
            case "task_complete" if self.in_own_part:
                self._in_turn = False
                self.ending = "failed" if payload.get("error") else "completed"
            case "turn_aborted" if self.in_own_part:
                self._in_turn, self.ending = False, "interrupted"
            case "user_message":
                self._take_prompt(payload, self._ms_of(time), pos)
            case "agent_message" if self.ending in _UNMARKED:
                self.ending, self._answered_at = "said", pos
            case "item_completed":
                self._take_item(payload)
            case "thread_rolled_back" if self.in_own_part:
                self._take_back(payload.get("num_turns"))
            case _:
                pass

    def _check_copy_end(self, payload: Json, pos: int) -> None:
        """End the copy of another thread if this turn's id is not older than the thread's id."""
        if self._has_copy and not self._copy_ended:
            turn_id = text_of(payload, "turn_id")
            # `codex migrate-rollouts` names turns without an id "rollout-5" and the like.
            is_uuid = turn_id is not None and len(turn_id) == len(self.thread_id)
            if turn_id is not None and is_uuid and turn_id >= self.thread_id:
                self._copy_ended, self.own_offset = True, self._block_offset + pos
                self._counts_directly = self.counts is None
                self._pending.clear()

    def _begin_turn(self, ms: int, offset: int) -> None:
        self.turns += 1
        # How an unmarked turn ended is known only at the end of a block.
        former = "answered" if self.ending in _UNMARKED else self.ending
        self.marks.append(Mark(offset, ms, self._requests_read, former))

    @property
    def _requests_read(self) -> int:
        return self._requests_before + len(self.requests) // REQUEST_FIELDS

    def _take_back(self, count: object) -> None:
        """Remove the last *count* turns, which a person has taken back; their tokens stay used."""
        if not isinstance(count, int) or count <= 0:
            return
        first = max(0, len(self.marks) - count)
        if first < len(self.marks):
            taken = self.marks[first]
            self.ending = taken.former
            del self.marks[first:]
            if self.marks:
                last = self.marks[-1]
                last.end = last.end or taken.offset
                last.requests_end = last.requests_end or taken.requests
        self.turns = len(self.marks)
        self._in_turn, self._added_prompt = False, None
        if not self.marks:
            self.title = None

    def _begin_marked_turn(self, ms: int, pos: int) -> None:
        """Begin a turn of a Codex that marks where each turn starts and ends."""
        self._begin_turn(ms, self._block_offset + pos)
        self._in_turn, self.ending = True, "open"
        self._context_line = b""
        self._has_prompt, self._added_prompt = False, None

    def _take_prompt(self, payload: Json, ms: int, pos: int) -> None:
        """Take a prompt: the turn's own, or one that a person added while the turn ran."""
        if not self.in_own_part:
            return
        if not self._in_turn:
            self._begin_turn(ms, self._block_offset + pos)
            self.ending = "asked"
        elif self._has_prompt:
            self._added_prompt = (ms, self._block_offset + pos)
        else:
            self._has_prompt = True
        self._set_title(text_of(payload, "message"))

    def _take_item(self, payload: Json) -> None:
        item = object_of(payload, "item")
        if self.in_own_part and item.get("type") == "UserMessage":
            self._set_title(user_text(item))

    def _leave_turn(self) -> None:
        """Close a turn that was killed: a Codex without turn ids now continues the thread."""
        self._in_turn = False
        if self._added_prompt is not None:
            self._begin_turn(*self._added_prompt)
            self.ending, self._added_prompt = "asked", None

    def _set_title(self, prompt: str | None) -> None:
        if self.title is None and prompt and (words := " ".join(prompt[:4000].split())):
            self.title = words[:TITLE_LIMIT]


def _may_matter(head: bytes) -> bool:
    """Return True unless a line with this start is only what the model reads."""
    return not any(has_start(head, kind, 0) for kind in (_RESPONSE, _COMPACTED))


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
