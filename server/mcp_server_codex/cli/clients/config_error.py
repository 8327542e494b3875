"""What is wrong with a client's configuration file, and where."""

from __future__ import annotations


class ConfigError(Exception):
    """A configuration file cannot be read, or may not be changed.

    Attributes:
        problem: What is wrong, without the place.
        line: The line, from 1; None if it is about the whole file.
        column: The column, from 1; None if it is about the whole line.
    """

    def __init__(self, problem: str, line: int | None = None, column: int | None = None) -> None:
        self.problem, self.line, self.column = problem, line, column
        where = "" if line is None else f"line {line}"
        where += "" if column is None else f", column {column}"
        super().__init__(f"{where}: {problem}" if where else problem)


def error_at(text: str, at: int, problem: str) -> ConfigError:
    """Return the error that *problem* is at the offset *at* of *text*."""
    before = text[:at].removeprefix("\ufeff")
    return ConfigError(problem, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def newline_of(text: str) -> str:
    """Return how the lines of *text* end."""
    return "\r\n" if "\r\n" in text else "\n"
