"""Print the tokens and the cost of Codex as a table with bars."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from codex_tools.codex.clean_text import clean
from codex_tools.usage import Bucket, Group, RateLimits, Row, UsageResult
from mcp_server_codex.cli.command import short

_REST = 68
"""Width in characters of all columns except the bars."""
_EIGHTHS = " ▏▎▍▌▋▊▉"


def show(found: dict[str, Any]) -> None:
    """Print the data of a UsageResult."""
    console = Console(highlight=False, markup=False, emoji=False)
    result = UsageResult.model_validate(found)
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False, padding=(0, 1))
    totals = result.totals
    footer = _cells(totals) if totals is not None else [Text()] * 6
    table.add_column("", footer=Text("total", "bold"), no_wrap=True)
    headings = ("requests", "input", "cached", "output", "total", "cost")
    for heading, cell in zip(headings, footer, strict=True):
        table.add_column(heading, footer=cell, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    by_cost = any(group.cost_usd_known for group in result.groups)
    width = max(4, min(30, console.width - _REST))
    most = max((_height(group, by_cost) for group in result.groups), default=0.0)
    for group in result.groups:
        bar = _bar(_height(group, by_cost), most, width)
        table.add_row(Text(clean(group.key)), *_cells(group), Text(bar, "cyan"))
    if result.groups:
        console.print(table)
    else:
        console.print("No recorded usage.")
    for note in result.notes:
        console.print(Text.assemble(("Note:", "yellow"), f" {clean(note)}"))
    for limits in _buckets(result.rate_limits):
        is_account = isinstance(limits, RateLimits)
        of = "" if is_account else f" of {clean(limits.limit_name or limits.limit_id)}"
        age = f"Rate limits{of}, {_ago(limits.age_s or 0)}:"
        console.print(Text.assemble((age, "dim"), f" {_limits(limits)}"))
    threads = totals.threads if totals is not None else 0
    console.print(
        f"{threads} of {result.sessions_read} threads read have usage in this report."
        f" Prices: {clean(str(result.prices))}. Recorded usage, not a bill.",
        style="dim",
    )


def _cells(row: Row) -> list[Text]:
    known = f"${row.cost_usd_known:,.2f}"
    cost = Text(known) if row.cost_usd is not None else Text(f"≥ {known}", "yellow")
    counts = (
        row.requests,
        row.input_tokens,
        row.cached_input_tokens,
        row.output_tokens,
        row.total_tokens,
    )
    return [*(Text(short(count)) for count in counts), cost]


def _height(row: Group, by_cost: bool) -> float:
    return row.cost_usd_known if by_cost else float(row.total_tokens)


def _bar(value: float, most: float, width: int) -> str:
    eighths = round(value / most * width * 8) if most else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _buckets(limits: RateLimits | None) -> list[RateLimits | Bucket]:
    """Return all buckets with limits, the account's first."""
    if limits is None:
        return []
    account = [limits] if limits.observed_at is not None else []
    return [*account, *limits.other_buckets]


def _limits(limits: RateLimits | Bucket) -> str:
    parts: list[str] = []
    for window in (limits.primary, limits.secondary):
        if window is None or window.used_percent is None:
            continue
        minutes = window.window_minutes or 0
        span = f"{minutes // 1440} d" if minutes >= 1440 else f"{minutes / 60:g} h"
        reset = "since then reset" if window.expired else f"resets at {window.resets_at}"
        parts.append(f"{window.used_percent:g} % of {span} used ({reset})")
    if isinstance(limits, RateLimits) and limits.credits_balance is not None:
        parts.append(f"credits {clean(limits.credits_balance)}")
    return " · ".join(parts) or "none recorded"


def _ago(seconds: int) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return "now"
