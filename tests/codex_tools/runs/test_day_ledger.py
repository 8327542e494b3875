"""The sums of a day: of several servers, of damaged files, and of other builds' files."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from codex_tools.codex.budget import Budgets, DayBudgetExhausted
from codex_tools.codex.record import Usage
from codex_tools.pricing.prices import read_prices
from codex_tools.rollouts.threads import Threads
from codex_tools.rollouts.usage_follower import DayShare, Spent
from codex_tools.runs import day_ledger
from codex_tools.runs.day_ledger import DayLedger
from codex_tools.runs.store import RunStore
from codex_tools.runs.writer import StateWriter

TODAY, TOMORROW = "2026-11-23", "2026-11-24"
OLD_DAY = "2026-10-01"
LIMITS = Budgets(budget_tokens_day=1000, budget_usd_day=2.0)
USED = Usage(
    input_tokens=90,
    cached_input_tokens=0,
    output_tokens=10,
    reasoning_output_tokens=0,
    total_tokens=100,
)


class Server:
    """A server's ledger, with all that it writes with."""

    def __init__(self, folder: Path) -> None:
        self.store = RunStore(folder)
        self.writer = StateWriter()
        threads = Threads(folder / "home", read_prices(None))
        self.ledger = DayLedger(folder, self.writer, self.store, threads, LIMITS)

    def write(self) -> None:
        """Write all that is queued."""
        self.writer.close(60)
        self.writer = StateWriter()
        self.ledger._writer = self.writer  # pyright: ignore[reportPrivateUsage]

    def close(self) -> None:
        self.writer.close(60)
        self.store.close()


@pytest.fixture(autouse=True)
def _today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(day_ledger, "_today", lambda: TODAY)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def one(state: Path) -> Generator[Server]:
    server = Server(state)
    yield server
    server.close()


@pytest.fixture
def two(state: Path) -> Generator[Server]:
    server = Server(state)
    yield server
    server.close()


def lay(state: Path, *lines: Any, end: bytes = b"\n") -> None:
    folder = state / "spending"
    folder.mkdir(mode=0o700, exist_ok=True)
    data = b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    with (folder / f"{TODAY}.jsonl").open("ab") as file:
        file.write(data + end)


async def test_what_one_server_notes_the_other_counts(one: Server, two: Server) -> None:
    one.ledger.put("run_a", [(TODAY, DayShare(100, 0.5))])
    one.ledger.put("run_a", [(TODAY, DayShare(300, 1.0)), (TOMORROW, DayShare(7, 0.1))])
    two.ledger.put("run_b", [(TODAY, DayShare(200, 0.25))])
    one.write()
    await two.ledger.check()
    assert two.ledger.used() == DayShare(500, 1.25)
    assert await two.ledger.left() == {
        "day": TODAY,
        "tokens": 1000,
        "tokens_left": 500,
        "usd": 2.0,
        "usd_left": 0.75,
    }
    one.ledger.put("run_a", [(TODAY, DayShare(800, 1.0))])
    one.write()
    with pytest.raises(DayBudgetExhausted, match=r"1,000 of 1,000 tokens \(--budget-tokens-day\)"):
        await two.ledger.check()


async def test_money_is_a_limit_of_its_own_and_unknown_prices_are_told(one: Server) -> None:
    one.ledger.put("run_a", [(TODAY, DayShare(1, 2.0, is_priced=False))])
    with pytest.raises(DayBudgetExhausted, match=r"\$2.00 of \$2.00 \(--budget-usd-day\)"):
        await one.ledger.check()
    assert one.ledger.used().is_priced is False


async def test_a_new_server_counts_what_earlier_ones_noted(state: Path, one: Server) -> None:
    one.ledger.begin("run_a")
    one.ledger.end("run_a", Spent(), USED, 0.25)  # Of an ephemeral run: no rollout recorded it.
    one.close()
    third = Server(state)
    await third.ledger.check()
    assert third.ledger.used() == DayShare(100, 0.25)
    third.close()


async def test_a_damaged_file_and_those_of_other_builds_are_read_as_far_as_possible(
    state: Path, one: Server
) -> None:
    newer = {"version": 2, "run_id": "run_n", "tokens": 20, "usd": 0.5, "more": [1], "unit": "x"}
    lay(
        state,
        {"run_id": "run_o", "tokens": 1},
        newer,
        *(b"", b"\xff\xfe", b"[]", b"null", b'{"run_id": "run_t", "tok'),
        {"run_id": "run_x", "tokens": "many"},
        {"run_id": "run_x", "tokens": -5},
        {"run_id": "run_x", "tokens": True},
        {"run_id": 7, "tokens": 5},
        b'{"run_id": "run_x", "tokens": NaN}',
        b'{"run_id": "run_x", "tokens": 1e300}',
        b"[" * 100_000,
        {"version": 1, "run_id": "run_p", "tokens": 300, "usd": None, "ended": True},
        b'{"version":1,"run_id":"run_q","tokens":9',
        end=b"",  # Its server was killed while it wrote.
    )
    await one.ledger.check()
    assert one.ledger.used() == DayShare(321, 0.5, is_priced=False)
    one.ledger.put("run_a", [(TODAY, DayShare(10, 0.0))])
    one.write()
    other = Server(state)
    await other.ledger.check()
    assert other.ledger.used().tokens == 331
    other.close()


async def test_a_file_that_was_removed_begins_again(state: Path, one: Server) -> None:
    lay(state, {"run_id": "run_o", "tokens": 900, "ended": True}, b" " * 500)
    await one.ledger.check()
    (state / "spending" / f"{TODAY}.jsonl").unlink()
    lay(state, {"run_id": "run_n", "tokens": 5, "ended": True})
    await one.ledger.check()
    assert one.ledger.used().tokens == 5


def test_only_files_of_old_days_are_removed(state: Path, one: Server) -> None:
    one.ledger.put("run_a", [(TODAY, DayShare(1)), (OLD_DAY, DayShare(2))])
    one.write()
    keep = state / "spending" / "notes.txt"
    keep.touch()
    old = state / "spending" / "2020-01-01.jsonl"
    old.touch()
    one.ledger.prune()
    assert not old.exists()
    assert keep.exists()
    assert (state / "spending" / f"{TODAY}.jsonl").exists()


def test_without_a_budget_nothing_is_read_and_all_is_noted(state: Path) -> None:
    server = Server(state)
    ledger = DayLedger(state, server.writer, server.store, server.ledger._threads, Budgets())  # pyright: ignore[reportPrivateUsage]
    assert ledger.limits == ()
    ledger.put("run_a", [(TODAY, DayShare(1))])
    server.close()
    (line,) = (state / "spending" / f"{TODAY}.jsonl").read_text().split()
    assert json.loads(line) | {"server_id": ""} == {
        "version": 1,
        "run_id": "run_a",
        "server_id": "",
        "tokens": 1,
        "usd": 0.0,
        "priced": True,
        "ended": False,
    }
    assert (state / "spending").stat().st_mode & 0o777 == 0o700
