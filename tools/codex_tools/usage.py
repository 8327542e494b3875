"""Define codex_usage: report the tokens and the estimated cost of Codex."""

from __future__ import annotations

from codex_tools.codex.errors import CodexError
from codex_tools.codex.record import Folder, Record
from codex_tools.history.usage_report import GroupBy, find_usage
from codex_tools.runs.result import RunError, tell_error
from codex_tools.runs.result_text import Words, words_of_error
from codex_tools.tool import Context, Tool


class UsageRequest(Record):
    """The arguments of codex_usage."""

    since: str | None = None
    """ISO 8601 date or time, or 24h, 7d"""
    until: str | None = None
    group_by: GroupBy = "day"
    timezone: str | None = None
    """IANA name; default: this machine's"""
    cwd: Folder | None = None
    """That folder and below"""
    model: str | None = None
    thread_id: str | None = None


class Row(Record):
    """Tokens, requests and cost; cached is part of input, reasoning of output."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_output_tokens: int
    total_tokens: int
    requests: int
    threads: int
    cost_usd: float | None
    """Estimate; null when a model in it has no known price"""
    cost_usd_known: float
    """Of models with a price"""


class Group(Row):
    """The row of one day, week, month, model, folder, thread or place."""

    key: str


class Window(Record):
    """The used part of a rate limit."""

    used_percent: float | None
    window_minutes: int | None
    resets_at: str | None
    expired: bool
    """True if reset since"""


class Bucket(Record):
    """Rate limits of some models, apart from the account's."""

    limit_id: str
    limit_name: str | None
    observed_at: str
    age_s: int
    primary: Window | None
    secondary: Window | None


class RateLimits(Record):
    """The account's rate limits as the provider last reported them to Codex."""

    observed_at: str | None
    age_s: int | None
    plan_type: str | None
    primary: Window | None
    secondary: Window | None
    credits_balance: str | None
    other_buckets: list[Bucket]
    """Limits of single models"""


class Budget(Record):
    """The operator's budget of the day, and what is left of it."""

    day: str
    tokens: int | None
    tokens_left: int | None
    usd: float | None
    usd_left: float | None


class UsageResult(Record):
    """The usage that Codex recorded; the bill may differ."""

    totals: Row | None
    groups: list[Group]
    rate_limits: RateLimits | None
    unpriced_models: list[str]
    sessions_read: int
    unreadable: int
    """Rollouts that cannot be read"""
    prices: str | None
    """Source of prices"""
    notes: list[str]
    budget: Budget | None
    """Of all runs today"""
    error: RunError | None


async def usage(request: UsageRequest, context: Context) -> UsageResult:
    """Report the tokens used and their estimated cost."""
    found = await context.read_history(
        lambda history, progress: find_usage(
            history, progress, roots=context.policy.roots, **request.model_dump()
        )
    )
    budget = await context.runs.ledger.left()
    return UsageResult.model_validate(found | {"budget": budget})


def refuse(error: CodexError) -> UsageResult:
    """Return the result of a request that was refused."""
    return UsageResult(
        totals=None,
        groups=[],
        rate_limits=None,
        unpriced_models=[],
        sessions_read=0,
        unreadable=0,
        prices=None,
        notes=[],
        budget=None,
        error=tell_error(error),
    )


def words(result: UsageResult) -> Words:
    """Return a result as text: the same data as JSON."""
    if result.error is not None:
        return words_of_error(result.error)
    return Words(result.model_dump_json())


USAGE = Tool(
    name="codex_usage",
    title="Codex usage",
    description=(
        "Tokens and estimated cost of all of Codex's threads on this machine, exact as Codex"
        " recorded them, grouped by day, week, month, model, folder, thread or place; and the"
        " account's newest rate limits."
    ),
    request=UsageRequest,
    result=UsageResult,
    call=usage,
    refuse=refuse,
    words=words,
    search_hint="Codex tokens, cost, spending, rate limits",
    read_only=True,
    idempotent=True,
    open_world=False,
)
