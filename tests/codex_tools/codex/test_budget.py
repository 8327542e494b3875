"""What a run may use: the caller's limits within the operator's, and what is said at their end."""

from __future__ import annotations

import pytest

from codex_tools.codex.budget import (
    NO_BUDGETS,
    BudgetExhausted,
    Budgets,
    DayBudgetExhausted,
    Limit,
)
from codex_tools.codex.errors import InvalidArguments
from codex_tools.codex.turn_result import TurnResult

OPERATOR = Budgets(50_000, 2.5, 1_000_000, 20.0)


def limits(budgets: Budgets, tokens: int | None = None, usd: float | None = None) -> object:
    found, beyond = budgets.of_run(tokens, usd, is_ephemeral=False)
    return [(each.name, each.most) for each in found], [(each.what, each.option) for each in beyond]


def test_a_caller_narrows_and_never_widens() -> None:
    assert limits(NO_BUDGETS) == ([], [])
    assert limits(NO_BUDGETS, 10, 0.5) == ([("max_tokens", 10), ("max_cost_usd", 0.5)], [])
    assert limits(OPERATOR) == ([("--max-run-tokens", 50_000), ("--max-run-usd", 2.5)], [])
    assert limits(OPERATOR, 50_000, 2.5) == ([("max_tokens", 50_000), ("max_cost_usd", 2.5)], [])
    assert limits(OPERATOR, 1) == ([("max_tokens", 1), ("--max-run-usd", 2.5)], [])
    _, beyond = OPERATOR.of_run(50_001, 2.51, is_ephemeral=False)
    assert [str(each) for each in beyond] == [
        "max_tokens 50001 is not allowed: the maximum is 50000.",
        "max_cost_usd 2.51 is not allowed: the maximum is 2.5.",
    ]
    assert all(each.danger for each in beyond)  # A person may allow it.


OPTIONS = ("--max-run-tokens", "--max-run-usd", "--budget-tokens-day", "--budget-usd-day")


@pytest.mark.parametrize("option", OPTIONS)
def test_an_ephemeral_run_is_beyond_each_budget(option: str) -> None:
    values: list[float | None] = [None] * 4
    values[OPTIONS.index(option)] = 5
    budgets = Budgets(*values)  # type: ignore[arg-type]
    _, (beyond,) = budgets.of_run(None, None, is_ephemeral=True)
    assert beyond.option == option
    assert NO_BUDGETS.of_run(None, None, is_ephemeral=True) == ((), [])
    with pytest.raises(InvalidArguments, match="max_cost_usd"):
        NO_BUDGETS.of_run(None, 1.0, is_ephemeral=True)


def test_the_limits_of_a_day_have_their_options_names() -> None:
    assert [(each.name, each.most, each.is_money) for each in OPERATOR.daily] == [
        ("--budget-tokens-day", 1_000_000, False),
        ("--budget-usd-day", 20.0, True),
    ]
    assert NO_BUDGETS.daily == ()


@pytest.mark.parametrize(
    ("limit", "used", "message", "hint"),
    [
        (Limit("max_tokens", 5000), 5100, "5,100 of 5,000 tokens", "a larger max_tokens"),
        (Limit("max_cost_usd", 0.01, True), 0.0123, "$0.0123 of $0.0100", "larger max_cost_usd"),
        (Limit("--max-run-usd", 2, True), 2.5, "$2.50 of $2.00", "can raise --max-run-usd"),
        (OPERATOR.daily[0], 1_000_007, "1,000,007 of 1,000,000", "raise --budget-tokens-day"),
    ],
)
def test_an_error_says_how_much_was_used_and_how_to_go_on(
    limit: Limit, used: float, message: str, hint: str
) -> None:
    error = BudgetExhausted(limit, used, TurnResult())
    assert message in error.message
    assert "codex_resume" in error.hint
    assert hint in error.hint
    assert (error.kind, error.retryable) == ("budget_exhausted", False)


def test_a_refusal_names_no_thread_to_resume() -> None:
    error = DayBudgetExhausted(OPERATOR.daily[1], 20.5)
    assert "$20.50 of $20.00 (--budget-usd-day)" in error.message
    assert "codex_resume" not in error.hint
    assert (error.kind, error.retryable) == ("budget_exhausted", False)
