"""Define the errors of runs on other machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codex_tools.codex.errors import RequestError, TurnError

if TYPE_CHECKING:
    from codex_tools.codex.turn_result import TurnResult


class PlaceUnavailable(RequestError):
    """A place could not be reached, or cannot run the turn; nothing was started there."""

    kind = "place_unavailable"
    retryable = True

    def __init__(self, place: str, problem: str, kind_there: str = "") -> None:
        self.place, self.problem = place, problem
        self.kind_there = kind_there
        """The kind of the error that the worker met; empty if there was no worker."""
        super().__init__(
            f"The place {place} cannot be used: {problem}. Nothing was started there.",
            "Name another place. The operator can run the command of the place in a terminal to see"
            " why it fails.",
        )


class PlaceRefused(RequestError):
    """The place refused the turn, because its own operator allows less; nothing was started."""

    kind = "not_allowed"

    def __init__(self, place: str, problem: str) -> None:
        self.place, self.problem = place, problem
        super().__init__(
            f"The place {place} refused the turn: {problem}",
            "Request less, or ask the operator of that place to change the options of its worker.",
        )


class ThreadElsewhere(RequestError):
    """The thread to resume is at another place than the caller named."""

    kind = "thread_elsewhere"

    def __init__(self, thread_id: str, place: str, asked: str) -> None:
        self.thread_id, self.place, self.asked = thread_id, place, asked
        super().__init__(
            f"Thread {thread_id} is at the place {place}, not at {asked}.",
            "Leave place out: codex_resume continues a thread where it is.",
        )


class PlaceLost(TurnError):
    """The place could no longer be reached during the turn; nothing of the turn is alive there."""

    kind = "place_lost"

    def __init__(self, place: str, problem: str, turn: TurnResult) -> None:
        self.place, self.problem = place, problem
        super().__init__(
            f"The place {place} was lost during the turn: {problem}. The turn may have worked;"
            " nothing of it is alive there.",
            "The turn is not started again by itself. What it did is kept at the place: continue"
            " with codex_resume once the place can be reached.",
            turn,
        )
