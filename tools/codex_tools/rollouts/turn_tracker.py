"""Follow the turns of one thread in its rollout: where each begins, and how the last one ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from codex_tools.codex.json_object import Json, object_of, text_of
from codex_tools.rollouts.line import records_errors, user_text
from codex_tools.rollouts.token_counter import REQUEST_FIELDS, TokenCounter
from codex_tools.rollouts.user_request import request_in

TITLE_LIMIT = 200
"""Characters of a thread's title, at most."""
UNMARKED = ("asked", "said", "answered")
"""The endings of a Codex that does not mark the end of a turn."""


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
class TurnTracker(TokenCounter):
    """The turns of a thread, its title and the state of its last turn."""

    own_offset: int = 0
    """Where the thread's own part begins, after a copy of another thread."""
    title: str | None = None
    """What the person asked first, without context."""
    turns: int = 0
    ending: str = ""
    """State of the last turn: open, completed, failed, interrupted. A Codex before 0.98 does not
    mark the end of a turn; its turns are asked, said or answered."""
    marks: list[Mark] = field(default_factory=lambda: [])
    """The turns, without those that a person has taken back."""
    _requests_before: int = 0
    """Number of requests before the last `restore`."""
    _next_tier: str | None = None
    """The service tier of turns that begin from now on."""
    _has_settings: bool = False
    """True once Codex has recorded settings of this thread."""
    _context_line: bytes = b""
    """The last turn_context line of the current turn, without its time."""
    _in_turn: bool = False
    _has_prompt: bool = False
    """True if the current turn has its prompt."""
    _has_context: bool = False
    """True if the current turn has a turn_context."""
    _is_answered: bool = False
    """True if the current turn has an answer that is not a message: a plan or a review."""
    _added_prompt: tuple[int, int] | None = None
    """Time (ms) and offset of the newest prompt that a person added to the current turn."""
    _answered_at: int = -1
    """Where the current block has the latest answer of an unmarked turn."""
    _block_offset: int = 0

    def _take_context(self, payload: Json, pos: int) -> None:
        self._check_copy_end(payload, pos)
        self._has_context = True
        self.model = text_of(payload, "model")
        self.cwd = text_of(payload, "cwd") or self.cwd
        self._context = None
        if self._in_turn and "turn_id" not in payload:
            self._leave_turn()

    def _take_settings(self, payload: Json) -> None:
        """Take the service tier; one without a name is the standard tier.

        Codex writes these settings before a turn, and in a new thread after the turn's start. A
        change while a turn runs is for the next turn (0.163.0 and 0.171.0).
        """
        if payload.get("thread_id") not in (None, self.thread_id):
            return
        self._next_tier = text_of(object_of(payload, "thread_settings"), "service_tier")
        has_requests = bool(self.marks) and self._requests_read > self.marks[-1].requests
        if not self._in_turn or not (self._has_settings or has_requests):
            self._use_next_tier()
        self._has_settings = True

    def _use_next_tier(self) -> None:
        if self.tier != self._next_tier:
            self.tier, self._context = self._next_tier, None

    def _has_failed(self, end: Json) -> bool:
        """Return True if a turn that ends with this `task_complete` has failed."""
        if end.get("error"):
            return True
        if isinstance(end.get("last_agent_message"), str) or self._is_answered:
            return False
        # A turn that only compacts the history, or runs a command of the person, asks no model.
        asks_model = self._has_prompt or self._has_context
        return asks_model and not self.is_paginated and not records_errors(end)

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
        former = "answered" if self.ending in UNMARKED else self.ending
        self.marks.append(Mark(offset, ms, self._requests_read, former))

    @property
    def _requests_read(self) -> int:
        return self._requests_before + len(self.requests) // REQUEST_FIELDS

    def _take_back(self, count: object) -> None:
        """Remove the last *count* turns, which a person has taken back; their tokens stay used."""
        if not isinstance(count, int):
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
        self._use_next_tier()
        self._context_line = b""
        self._has_prompt, self._added_prompt = False, None
        self._has_context = self._is_answered = False

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
        elif item.get("type") == "Plan":
            self._is_answered = True

    def _leave_turn(self) -> None:
        """Close a turn that was killed: a Codex without turn ids now continues the thread."""
        self._in_turn = False
        if self._added_prompt is not None:
            self._begin_turn(*self._added_prompt)
            self.ending, self._added_prompt = "asked", None

    def _set_title(self, prompt: str | None) -> None:
        if self.title is None and (request := request_in(prompt)):
            self.title = " ".join(request[:4000].split())[:TITLE_LIMIT] or None
