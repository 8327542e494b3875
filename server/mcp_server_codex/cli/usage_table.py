"""Print the tokens and the cost of Codex as a table with bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from codex_tools.codex.clean_text import clean
from codex_tools.usage import Bucket, Group, RateLimits, Row, UsageResult
from mcp_server_codex.cli.command import short
from mcp_server_codex.cli.run_lines import PlainConsole
from mcp_server_codex.cli.table import Column, print_table

_EIGHTHS = " ▏▎▍▌▋▊▉"


def show(found: dict[str, Any]) -> None:
    """Print the data of a UsageResult."""
    console = PlainConsole()
    parts = {group["key"]: group.pop("models", []) for group in found["groups"]}
    result = UsageResult.model_validate(found)
    totals = result.totals
    if result.groups and totals is not None:
        rows: list[Group] = []
        inner: set[int] = set()
        for group in result.groups:
            rows.append(group)
            models = [Group.model_validate(part) for part in parts[group.key]]
            inner |= {*range(len(rows), len(rows) + len(models))}
            rows += models
        _print_groups(console, rows, totals, inner)
    else:
        console.print("No recorded usage.")
    for note in result.notes:
        console.say(Text.assemble(("Note:", "yellow"), f" {clean(note)}"))
    for limits in _buckets(result.rate_limits):
        is_account = isinstance(limits, RateLimits)
        of = "" if is_account else f" of {clean(limits.limit_name or limits.limit_id)}"
        age = f"Rate limits{of}, {_ago(limits.age_s or 0)}:"
        console.say(Text.assemble((age, "dim"), f" {_limits(limits)}"))
    threads = totals.threads if totals is not None else 0
    end = (
        f"{threads} of {result.sessions_read} threads read have usage in this report."
        f" Prices: {clean(str(result.prices))}. Recorded usage, not a bill."
    )
    console.say(Text(end, "dim"))


def _print_groups(
    console: PlainConsole, groups: Sequence[Group], totals: Row, inner: set[int]
) -> None:
    """Print a row for each of *groups*; those at the places *inner* are models of the one above."""
    keys = [
        Text(f"  {clean(group.key)}", "dim") if at in inner else Text(clean(group.key))
        for at, group in enumerate(groups)
    ]
    longest = max(len(key) for key in keys)
    figures = zip(
        ("requests", "input", "cached", "output", "total", "cost"),
        zip(*(_cells(group) for group in groups), strict=True),
        _cells(totals),
        (4, 2, 3, 1, 0, 0),
        strict=True,
    )
    columns = [
        # A day or a month is not folded; a folder or a model can be.
        Column("", keys, Text("total", "bold"), is_figure=False, least=min(longest, 36)),
        *(Column(*column[:3], rank=column[3]) for column in figures),
    ]
    by_cost = any(group.cost_usd_known for group in groups)
    heights = [_height(group, by_cost) for group in groups]

    def bars(width: int) -> list[str]:
        most = max(height for at, height in enumerate(heights) if at not in inner)
        plain = console.options.ascii_only
        drawn = [
            "" if at in inner else _bar(height, most, width) for at, height in enumerate(heights)
        ]
        return ["#" * len(bar) for bar in drawn] if plain else drawn

    print_table(console, columns, bars, "--csv and --json have all columns.")


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
