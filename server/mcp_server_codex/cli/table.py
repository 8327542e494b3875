"""Tables for a person, which never cut a figure, a date or a heading.

If a terminal is too narrow, the bars go first, then whole columns; a line below names them. A pipe
has no width, so it gets all columns and no bars are shortened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mcp_server_codex.cli.run_lines import PlainConsole

_ENDLESS = 10_000
"""Columns of a console that is none: more than any table needs."""
_LEAST = 8
"""Columns of text that is folded on the narrowest of terminals."""
_BARS = range(4, 31)
"""Columns of the longest bar."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    heading: str
    cells: Sequence[Text]
    footer: Text | None = None
    is_figure: bool = True
    """True for a column that stands at the right and is never folded."""
    rank: int = 0
    """Columns with a rank can be left out, those with the highest one first."""
    least: int = 1
    """Width of a column that can be folded, at least."""


def print_table(
    console: PlainConsole,
    columns: Sequence[Column],
    bars: Callable[[int], Sequence[str]] | None = None,
    advice: str = "",
) -> None:
    """Print a table as wide as the terminal allows.

    Args:
        console: Where to print it.
        columns: All columns.
        bars: Returns a bar for each row, for the width of the longest one.
        advice: How to get all columns; printed behind the names of those that were left out.
    """
    kept = list(columns)
    while (need := _need(console, kept)) > console.limit:
        if not any(column.rank for column in kept):
            kept = [replace(column, least=min(column.least, _LEAST)) for column in kept]
            break
        kept.remove(max(kept, key=lambda column: column.rank))
    table = _table(kept)
    spare = min(console.limit - need - 2, _BARS[-1])
    if bars is not None and len(kept) == len(columns) and spare in _BARS:
        drawn = [Text(bar, "cyan") for bar in bars(spare)]
        table = _table([*kept, Column("", drawn, is_figure=False, least=spare)])
    if not console.is_terminal:
        console.width = _whole(console, table)
    console.print(table)
    names = [column.heading for column in kept]
    if left_out := [column.heading for column in columns if column.heading not in names]:
        text = f"No room for: {', '.join(left_out)}. {advice}".rstrip()
        console.say(Text(text, "dim"))


def _table(columns: Sequence[Column]) -> Table:
    has_footer = any(column.footer is not None for column in columns)
    table = Table(
        box=box.SIMPLE_HEAD,
        show_footer=has_footer,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    for column in columns:
        table.add_column(
            column.heading,
            footer=column.footer or "",
            justify="right" if column.is_figure else "left",
            no_wrap=column.is_figure,
            overflow="fold",
            min_width=len(column.heading) if column.is_figure else column.least,
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def _need(console: PlainConsole, columns: Sequence[Column]) -> int:
    """Return the width of the table if all that can be folded is folded."""
    folded = [
        column
        if column.is_figure
        else Column(column.heading, [Text("x" * column.least)] * len(column.cells), column.footer)
        for column in columns
    ]
    return _whole(console, _table(folded))


def _whole(console: PlainConsole, table: Table) -> int:
    endless = console.options.update(width=_ENDLESS)
    return Measurement.get(console, endless, table).maximum
