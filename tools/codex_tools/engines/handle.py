"""Speak to a turn while it runs: add words, interrupt it, and answer what Codex asks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import anyio

from codex_tools.codex.json_object import Json, object_of, text_of
from codex_tools.codex.questions import DECLINED, Answer, NotSteered, Question
from codex_tools.engines.json_rpc import (
    Connection,
    ConnectionEnded,
    Notification,
    RpcError,
    ServerRequest,
)
from codex_tools.engines.questions import read_question, write_answer

ANSWER_LIMIT_S = 600.0
"""Seconds after which a question is declined; Codex itself waits for ever (0.147.0 to 0.171.0)."""

QUESTIONS_LIMIT = 20
"""Questions that may be open at a time; more are declined. Parallel calls ask in parallel."""

PATCHES_KEPT = 100
"""Started patches whose files are remembered for a question."""

REQUEST_WITHIN_S = 10.0
"""Seconds to wait for the answer to a steering or an interruption."""

RESOLVED = "serverRequest/resolved"
"""Method of the notification that a question no longer waits."""

_CHECK_EVERY_S = 0.5


@dataclass(slots=True)
class _Open:
    question: Question
    request: ServerRequest


class TurnHandle:
    """A running turn of an app-server; see `codex.questions.Handle`."""

    def __init__(self, *, answer_within_s: float = ANSWER_LIMIT_S) -> None:
        """Make the handle of a turn that has not begun.

        Args:
            answer_within_s: Seconds after which a question is declined.
        """
        self.asks = False
        """True to keep questions for `answer`; False to decline each at once."""
        self.asks_caller = False
        """The same for questions to the caller."""
        self.thread_id = ""
        self.turn_id = ""
        self.has_ended = False
        """True after the turn's last event."""
        self.diff: str | None = None
        """All patches of the turn so far as one diff; what commands change is not in it."""
        self.connection: Connection | None = None
        self._answer_within_s = answer_within_s
        self._open: dict[str, _Open] = {}
        self._patches: dict[str, Json] = {}
        self._asked = 0
        self._is_interrupted = False

    @property
    def questions(self) -> tuple[Question, ...]:
        """The questions that wait for an answer, oldest first."""
        return tuple(each.question for each in self._open.values())

    async def steer(self, text: str) -> None:
        """Add *text* to the running turn, as a person would type it meanwhile.

        While Codex waits for an answer to a question, the text changes nothing (0.147.0 to
        0.171.0); while a command runs, the model sees it after the command.

        Raises:
            NotSteered: No turn is running, it is a review, or there was no answer.
        """
        if not self.is_running:
            raise NotSteered("the turn has not begun, or has ended")
        params: Json = {
            "threadId": self.thread_id,
            "expectedTurnId": self.turn_id,
            "input": [{"type": "text", "text": text}],
        }
        try:
            await self._connected().request("turn/steer", params, REQUEST_WITHIN_S)
        except RpcError as error:
            raise NotSteered(str(error)) from None

    @property
    def is_running(self) -> bool:
        """True from the turn's begin to its last event."""
        return bool(self.turn_id) and not self.has_ended

    async def interrupt(self) -> None:
        """Ask Codex to end the turn; its last event follows. Call again without effect.

        Codex does not end the command that is running (0.147.0 to 0.171.0): leaving the turn does.

        Raises:
            RequestRefused: No turn is running.
            RpcError: There was no answer.
        """
        if self._is_interrupted:  # 0.163.0 never answers a second one.
            return
        self._is_interrupted = True
        # An empty id means the turn that runs; a review has two ids.
        params = {"threadId": self.thread_id, "turnId": ""}
        await self._connected().request("turn/interrupt", params, REQUEST_WITHIN_S)

    def answer(self, question_id: str, answer: Answer) -> bool:
        """Answer a question; return False if it no longer waits."""
        found = self._open.pop(question_id, None)
        if found is None or self.connection is None:
            return False
        return self.connection.respond(found.request, write_answer(found.request, answer))

    def decide(self, request: ServerRequest) -> Json | None:
        """Return the answer to a request of Codex; None if it waits for `answer`.

        Raises:
            LookupError: The request is of a kind that this client does not answer.
        """
        self._asked += 1
        question = read_question(f"question_{self._asked}", request, self._patches)
        if question is None:
            raise LookupError(request.method)
        keeps = self.asks_caller if question.for_caller else self.asks
        if not keeps or len(self._open) >= QUESTIONS_LIMIT:
            return write_answer(request, DECLINED)
        until = anyio.current_time() + self._answer_within_s
        self._open[question.id] = _Open(replace(question, until=until), request)
        return None

    def observe(self, notification: Notification) -> None:
        """Remember the files of patches, and drop questions that Codex no longer asks."""
        params = notification.params
        if notification.method == RESOLVED:
            for key, each in [*self._open.items()]:
                if each.request.id == params.get("requestId"):
                    del self._open[key]
                    self._connected().forget(each.request)
        elif notification.method == "turn/started" and params.get("threadId") == self.thread_id:
            self.turn_id = self.turn_id or text_of(object_of(params, "turn"), "id") or ""
        elif notification.method == "item/started":
            item = object_of(params, "item")
            if item.get("type") == "fileChange":
                self._patches[text_of(item, "id") or ""] = item
                if len(self._patches) > PATCHES_KEPT:
                    del self._patches[next(iter(self._patches))]

    async def expire(self) -> None:
        """Decline the questions whose time is over, until cancelled."""
        while True:
            await anyio.sleep(_CHECK_EVERY_S)
            now = anyio.current_time()
            for key in [key for key, each in self._open.items() if each.question.until <= now]:
                self.answer(key, DECLINED)

    def _connected(self) -> Connection:
        if self.connection is None:
            raise ConnectionEnded("the turn was not started")
        return self.connection
