"""Define the budgets of runs, in tokens and in USD: for one run, and for all runs of a day."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codex_tools.codex.errors import InvalidArguments, NotAllowed, RequestError, TurnError

if TYPE_CHECKING:
    from codex_tools.codex.turn_result import TurnResult

WARNED_AT = 0.8
"""Used part of a limit at which the caller gets a warning."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit, and the argument or option that it comes from."""

    name: str
    most: float
    is_money: bool = False
    """True for USD, False for tokens."""
    is_daily: bool = False
    """True if it is for all runs of a day, False if it is for one run."""

    def told(self, used: float) -> str:
        """Return what is used of the limit as text, such as "900 of 1,000 tokens"."""
        if self.is_money:
            return f"${_usd(used)} of ${_usd(self.most)} ({self.name})"
        return f"{used:,.0f} of {self.most:,.0f} tokens ({self.name})"


def _usd(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.4f}"


@dataclass(frozen=True, slots=True)
class Budgets:
    """The operator's budgets; None for no limit."""

    max_run_tokens: int | None = None
    max_run_usd: float | None = None
    budget_tokens_day: int | None = None
    budget_usd_day: float | None = None

    @property
    def daily(self) -> tuple[Limit, ...]:
        """The limits of a day."""
        found: list[Limit] = []
        if self.budget_tokens_day is not None:
            found.append(Limit("--budget-tokens-day", self.budget_tokens_day, is_daily=True))
        if self.budget_usd_day is not None:
            found.append(Limit("--budget-usd-day", self.budget_usd_day, True, is_daily=True))
        return tuple(found)

    def of_run(
        self, max_tokens: int | None, max_cost_usd: float | None, *, is_ephemeral: bool
    ) -> tuple[tuple[Limit, ...], list[NotAllowed]]:
        """Return the limits of a run, and what of the caller's arguments is beyond the operator's.

        Args:
            max_tokens: The caller's limit; None for the operator's.
            max_cost_usd: The same in USD.
            is_ephemeral: True if Codex keeps no rollout of the run.

        Raises:
            InvalidArguments: The caller's limits cannot be watched in an ephemeral run.
        """
        limits: list[Limit] = []
        beyond: list[NotAllowed] = []
        for name, asked, option, most, is_money in (
            ("max_tokens", max_tokens, "--max-run-tokens", self.max_run_tokens, False),
            ("max_cost_usd", max_cost_usd, "--max-run-usd", self.max_run_usd, True),
        ):
            if asked is not None:
                limits.append(Limit(name, asked, is_money))
                if is_ephemeral:
                    raise InvalidArguments(
                        [f"{name}: Codex records no tokens of an ephemeral run; leave out one"]
                    )
                if most is not None and asked > most:
                    excess = f"the maximum is {most:g}"
                    beyond.append(NotAllowed(f"{name} {asked:g}", excess, option, _DANGER))
            elif most is not None:
                limits.append(Limit(option, most, is_money))
        if is_ephemeral and (names := [*self._names()]):
            what = "Codex records no tokens that could be compared with the budgets of this server"
            beyond.append(NotAllowed("ephemeral", what, " or ".join(names), _DANGER))
        return tuple(limits), beyond

    def _names(self) -> Iterator[str]:
        for name in self.__slots__:
            if getattr(self, name) is not None:
                yield f"--{name.replace('_', '-')}"


NO_BUDGETS = Budgets()

_DANGER = "Codex could use more tokens than you want to pay for"


class BudgetExhausted(TurnError):
    """The run used as much as its budget, or that of the day, and was stopped."""

    kind = "budget_exhausted"

    def __init__(self, limit: Limit, used: float, turn: TurnResult) -> None:
        self.limit, self.used = limit, used
        if limit.is_daily:
            of = "The budget of the day is used up"
            how = f"tomorrow, or ask the operator of this server to raise {limit.name}."
        elif limit.name.startswith("--"):
            of = "The run has used up its budget"
            how = f"with a smaller task. The operator of this server can raise {limit.name}."
        else:
            of = "The run has used up its budget"
            how = f"with a larger {limit.name} or a smaller task."
        super().__init__(
            f"{of} and was stopped: {limit.told(used)}.",
            f"Work done so far is kept. Continue with codex_resume, {how}",
            turn,
        )


class DayBudgetExhausted(RequestError):
    """No run may start today, because the budget of the day is used up."""

    kind = "budget_exhausted"

    def __init__(self, limit: Limit, used: float) -> None:
        self.limit, self.used = limit, used
        super().__init__(
            f"The budget of the day is used up: {limit.told(used)}.",
            f"Call again tomorrow, or ask the operator of this server to raise {limit.name}.",
        )
