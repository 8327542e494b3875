"""The error for a client's configuration file: the problem, the line and the column."""

from __future__ import annotations


class ConfigError(Exception):
    """A configuration file cannot be read or must not be changed.

    Attributes:
        problem: The problem, without its position.
        line: The line, from 1; None if the problem concerns the whole file.
        column: The column, from 1; None if the problem concerns the whole line.
    """

    def __init__(self, problem: str, line: int | None = None, column: int | None = None) -> None:
        self.problem, self.line, self.column = problem, line, column
        where = "" if line is None else f"line {line}"
        where += "" if column is None else f", column {column}"
        super().__init__(f"{where}: {problem}" if where else problem)


def error_at(text: str, at: int, problem: str) -> ConfigError:
    """Return a ConfigError for *problem* at the offset *at* of *text*."""
    before = text[:at].removeprefix("\ufeff")
    return ConfigError(problem, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def newline_of(text: str) -> str:
    """Return the line ending that *text* uses."""
    return "\r\n" if "\r\n" in text else "\n"
