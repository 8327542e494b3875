"""Read one rollout: whose thread it is, what it used, and how its last turn ended.

Most lines of a rollout are what the model read, so only the lines that matter are parsed. A line
that is not written as Codex writes it now takes a slower way to the same result. A line that
makes no sense is counted in `bad_lines` and left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    THREAD,
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
from codex_tools.rollouts.token_counter import REQUEST_FIELDS, RESPONSE_FIELD, Limits
from codex_tools.rollouts.turn_tracker import UNMARKED, Mark, TurnTracker
from codex_tools.rollouts.user_request import request_in

_CWD = re.compile(r"<cwd>([^<\n]+)</cwd>|Current working directory: ([^\n]+)")
_RESPONSE = b'"type":"response_item"'
_COMPACTED = b'"type":"compacted"'
_CALLS = (
    _RESPONSE + b',"payload":{"type":"function_call',
    _RESPONSE + b',"payload":{"type":"custom_tool_call',
    _RESPONSE + b',"payload":{"type":"local_shell_call',
)
_ANSWER = _RESPONSE + b',"payload":{"type":"message","role":"assistant"'
_ANSWERED = b'"last_agent_message":"'
_HEAD_OF_LINE = 150
"""Bytes of a line that contain the type of its payload."""
_SETTINGS = b'"type":"thread_settings_applied"'
_TIER = b'"service_tier":"'
_STARTED_LIMIT = 1000
"""Bytes of a task_started that is not parsed; a longer one may have a record appended to it."""
_UNPARSED = (ITEM, CONTEXT, AGENT, STARTED, COMPLETED, THREAD, ODD)
"""The kinds of lines that often need no parsing."""

FACTS = (
    *("thread_id", "created_ms", "cwd", "git_branch", "source", "is_subagent", "model"),
    *("cli_version", "parent_id", "forked_id", "agent", "title", "turns", "ending", "is_paginated"),
    *("is_damaged", "own_offset", "bad_lines", "active_ms", "has_meta", "base_id", "base_offset"),
    "offset",
)
"""The attributes of a reader that describe its rollout."""
_STATE = (
    *("_in_turn", "_has_copy", "_copy_ended", "_record", "_is_record_unsure"),
    *("_has_prompt", "_added_prompt", "_has_context", "_is_answered", "_is_bare"),
    *("tier", "_next_tier", "_has_settings"),
)
"""The further attributes in `state`; indexes on disk depend on their order."""

_state_of = attrgetter(*FACTS, *_STATE)


@dataclass(slots=True, eq=False)
class ThreadReader(TurnTracker):
    """One rollout as far as it has been read; its attributes are the results.

    Call `feed` with the file's bytes in order, then `finish`. Another reader can continue at
    `offset` after `restore` with this reader's `state`, `requests`, `marks` and `all_limits`.
    """

    offset: int = 0
    """Bytes read, in whole lines."""
    active_ms: int | None = None
    is_damaged: bool = False
    """True if an old Codex has written into paginated history: no Codex can resume it."""
    _is_bare: bool = False
    """True in a rollout of a Codex before September 2025."""
    _data: bytes = b""
    """The current block, in whole lines except for the last one."""
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

    def restore(
        self, state: str, requests: Sequence[int], marks: Iterable[Mark], limits: Limits
    ) -> None:
        """Continue where another reader stopped."""
        *values, total = orjson.loads(state)
        for name, value in zip((*FACTS, *_STATE), values, strict=True):
            setattr(self, name, value)
        self._total = total.encode()
        self.limits_ms, self.limits, self.other_limits = limits
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
                if self._take_count_text(line, place.start):
                    continue
            elif kind == ITEM and self.title is not None and self.is_paginated:
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
            self._take_kept_limits()
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
            if self.ending in UNMARKED and b'"type":"agent_message"' in line[:_HEAD_OF_LINE]:
                self.ending, self._answered_at = "said", pos
            return True
        if kind == THREAD:
            # The usual one: a turn in the standard tier follows another one.
            is_usual = self._has_settings and self._next_tier is None and _TIER not in line
            return is_usual and _SETTINGS in line[:_HEAD_OF_LINE]
        if kind == ODD:
            return line.isspace()
        if not self._counts_directly:
            return False
        if kind == COMPLETED and _is_plain_end(line):
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
        except orjson.JSONDecodeError:
            self.bad_lines += 1
            for record in records_in(line):
                if len(record) < len(line):
                    self._take_line(record, pos + line.find(record))
            return
        try:
            kind: object = entry["type"]
            payload: Json = entry["payload"]
        except (KeyError, TypeError):
            if type(entry) is not dict or not self._take_bare(entry, pos):
                self.bad_lines += 1
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

    def _take_bare(self, entry: Json, pos: int) -> bool:
        """Take a line of a Codex before September 2025; return False for any other line.

        The first line had no type, and items had no envelope and no time.
        """
        kind = entry.get("type")
        if not self.has_meta and kind is None and text_of(entry, "id") and "timestamp" in entry:
            self._take_meta(entry)
            self._is_bare, self.active_ms = True, self.created_ms
            return True
        if not self._is_bare or "payload" in entry:
            return False
        if kind == "message":
            self._take_bare_message(entry, pos)
        elif isinstance(kind, str) and kind.endswith("_call") and self.ending:
            self.ending = "asked"
        return True

    def _take_bare_message(self, message: Json, pos: int) -> None:
        text = user_text(message)
        if message.get("role") == "assistant":
            self.ending = "answered" if self.ending else ""
        elif message.get("role") == "user" and text is not None:
            if request_in(text) is not None:
                self._take_prompt({"message": text}, self.created_ms or 0, pos)
            elif self.cwd is None and (found := _CWD.search(text)):
                self.cwd = found[1] or found[2]

    def _take_appended(self, pos: int) -> None:
        """Begin the turn whose start was appended to a torn line, if there is one before *pos*.

        Most torn lines are passed over like any line of their kind. To look for this in each of
        them would take 1.08 times the CPU time of a cold index. Codex 0.120 writes task_started
        first when it resumes a thread, then a turn_context.
        """
        if self.is_paginated and not self.is_damaged:
            return  # Codex 0.147 and later complete a torn line.
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
                self.ending = "failed" if self._has_failed(payload) else "completed"
            case "turn_aborted" if self.in_own_part:
                self._in_turn, self.ending = False, "interrupted"
            case "user_message":
                self._take_prompt(payload, self._ms_of(time), pos)
            case "agent_message" if self.ending in UNMARKED:
                self.ending, self._answered_at = "said", pos
            case "item_completed":
                self._take_item(payload)
            case "exited_review_mode":
                self._is_answered = True
            case "thread_settings_applied":
                self._take_settings(payload)
            case "thread_rolled_back" if self.in_own_part:
                self._take_back(payload.get("num_turns"))
            case _:
                pass


def _may_matter(head: bytes) -> bool:
    """Return True unless a line with this start is only what the model reads."""
    return not any(has_start(head, kind, 0) for kind in (_RESPONSE, _COMPACTED))


def _is_plain_end(line: bytes) -> bool:
    """Return True if a task_complete has an answer, no error, and no record appended to it."""
    return _ANSWERED in line and b'"error":' not in line and line.rfind(RECORD) <= 0


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
