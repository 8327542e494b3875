"""Any rollout that Codex could have written, and the account of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from codex_tools.rollouts.line import Counts
from support.rollout_lines import (
    COUNT_LINE,
    PARENT,
    THREAD,
    Json,
    Read,
    asked,
    call,
    context,
    ended,
    line,
    meta,
    new_meta,
    no_count,
    output,
    read,
    record,
    resumed,
    started,
    tokens,
    told,
    written,
)

# Any thread that Codex could have written.


class Codex:
    """Writes a rollout as Codex would, and knows what each request used."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        self.lines: list[Json] = []
        self.used: list[tuple[int, ...]] = []
        self.total = (0, 0, 0, 0, 0)
        self.is_old = True
        self.last: tuple[int, ...] | None = None
        self.turn = 0
        self.responses = 0
        self.model = "gpt-5.5"
        self.prefix = ""

    def numbers(self, used: Sequence[int]) -> Json:
        names = [name for name in tokens(0, 0) if name != "total_tokens"]
        numbers = dict(zip(names, used, strict=True)) | {"total_tokens": used[0] + used[3]}
        if self.is_old:
            del numbers["cache_write_input_tokens"]
        return numbers

    def emit(self, last: Sequence[int], percent: float | None = None) -> None:
        self.lines.append(told(self.numbers(self.total), self.numbers(last), percent))

    def begin(self, by_old: bool) -> None:
        """Start a process that resumes the thread."""
        if self.turn and not self.is_old:
            self.lines.append(ended())
        self.is_old, self.last = by_old, None
        self.turn += 1
        if by_old:
            self.total = (0, 0, 0, 0, 0)
            self.lines += [asked("go on"), context(self.model), no_count()]
        else:
            turn_id = f"{self.thread_id[:-4]}{0x9000 + self.turn:04x}"
            self.lines += [started(turn_id), context(self.model, turn_id=turn_id), asked("go on")]

    def step(self, what: str, numbers: tuple[int, ...]) -> None:
        match what:
            case "request":
                self.request(numbers)
            case "again" if self.last is not None:
                self.emit(self.last, 50.5)
            case "compaction" if self.last is not None:
                self.emit((0, 0, 0, 0, 0))
                self.lines.append(line("compacted", {"message": COUNT_LINE}))
            case "abort" if not self.is_old:
                self.lines.append(no_count())
                self.begin(by_old=False)
            case "model":
                self.model = f"gpt-{numbers[0]}"
                self.begin(self.is_old)
            case "output":
                self.lines += [call(), output(COUNT_LINE * 3)]
            case "old" | "new":
                self.begin(what == "old")
            case _:
                pass

    def request(self, numbers: tuple[int, ...]) -> None:
        input_, cached, write, output_, reasoning = numbers
        used = (input_, cached, 0 if self.is_old else write, output_, reasoning)
        self.total = cast(Counts, tuple(map(sum, zip(self.total, used, strict=True))))
        self.used.append(used)
        self.last = used
        if not self.is_old:
            self.responses += 1
            told_of = record(1, f"resp_{self.prefix}{self.responses}", self.thread_id)
            told_of["payload"]["usage"] = self.numbers(used)
            self.lines.append(told_of)
        self.emit(used)


NUMBERS = st.tuples(
    st.integers(1, 3), st.integers(0, 2), st.integers(0, 1), st.integers(0, 2), st.integers(0, 2)
)
WORDS = ("request", "request", "again", "compaction", "abort", "model", "output", "old", "new")
STEPS = st.lists(st.tuples(st.sampled_from(WORDS), NUMBERS), max_size=30)


def used_in(found: Read) -> list[tuple[int, ...]]:
    return [used for *_, used in found.requests]


@settings(max_examples=120, deadline=None)
@given(steps=STEPS, by_old=st.booleans(), size=st.integers(20, 3000), cut=st.floats(0, 1))
def test_the_account_of_any_thread_is_exact(
    steps: list[tuple[str, tuple[int, ...]]], by_old: bool, size: int, cut: float
) -> None:
    codex = Codex(THREAD)
    codex.lines.append(meta())
    codex.begin(by_old)
    for step in steps:
        codex.step(*step)
    data = written(*codex.lines)
    found = read(data)
    assert used_in(found) == codex.used
    assert found.facts["turns"] == codex.turn
    assert found.facts["bad_lines"] == 0
    assert read(data, size) == found
    assert resumed(data, int(len(data) * cut)) == found


@settings(max_examples=120, deadline=None)
@given(theirs=STEPS, ours=STEPS, by_old=st.booleans(), size=st.integers(20, 3000))
def test_the_account_of_any_legacy_fork_is_of_its_own_part(
    theirs: list[tuple[str, tuple[int, ...]]],
    ours: list[tuple[str, tuple[int, ...]]],
    by_old: bool,
    size: int,
) -> None:
    codex = Codex(PARENT)
    codex.begin(by_old)
    for step in theirs:
        codex.step(*step)
    codex.thread_id, codex.used, codex.turn, codex.prefix = THREAD, [], 0, "own"
    fork = new_meta(mode="legacy", first={"forked_from_id": PARENT})
    codex.lines = [fork, meta(PARENT), *codex.lines]
    codex.begin(by_old=False)
    for step in ours:
        codex.step(*step)
    data = written(*codex.lines)
    found = read(data)
    assert used_in(found) == codex.used
    assert found.facts["turns"] == codex.turn
    assert read(data, size) == found
