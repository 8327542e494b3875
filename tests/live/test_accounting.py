"""What codex_usage and codex_sessions tell of real Codex, against what the model answered."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import cast
from zoneinfo import ZoneInfo

import pytest
from mcp import Client

from codex_tools.pricing.prices import read_prices
from mcp_server_codex.cli.scripted_model import Refuse, Reply, Say, Shell, Usage, say
from support.codex_versions import VERSIONS, number, real_codex
from support.lab import MODES, Json, Lab, call, connect, environment, open_lab, server_program
from support.real_home import OLD, RealHome, Used, can_fork, content_of, counted, open_real_home

PRICES = read_prices()
FAR_EAST = ZoneInfo("Pacific/Kiritimati")
FAR_WEST = ZoneInfo("Pacific/Niue")

LONG_CONTEXT = "gpt-5.4"
"""A model whose requests above 272,000 input tokens cost double."""

NEWER = [version for version in VERSIONS if version != OLD]
MIGRATING = [version for version in VERSIONS if number(version) >= (0, 163, 0)]
WITH_EPHEMERAL = [version for version in VERSIONS if number(version) >= (0, 99, 0)]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with an index that grew while the home was made."""
    return tmp_path_factory.mktemp("grown")


@pytest.fixture(scope="module")
def home(version: str, grown: Path) -> Generator[RealHome]:
    if version != OLD and not can_fork(version):
        pytest.skip(f"the home needs forks, and `codex exec` of {version} makes none")
    with open_real_home(version, grown / version) as made:
        yield made


@pytest.fixture
def state(mode: str, grown: Path, version: str, tmp_path: Path) -> Path:
    """A state folder without an index in the one mode, with one that grew in the other.

    So the modes are more than modes here, and each is met with each version.
    """
    return tmp_path if mode == MODES[0] else grown / version


@asynccontextmanager
async def server(
    mode: str, home: RealHome, state: Path, version: str | None = None
) -> AsyncGenerator[Client]:
    codex = real_codex(version or home.version)
    async with connect(mode, codex, home.lab, "--state-dir", str(state)) as client:
        yield client


async def told(client: Client, tool: str, **arguments: object) -> Json:
    """Return what codex_sessions or codex_usage tell, which have no status."""
    result = await client.call_tool(tool, arguments)
    data = cast("Json", result.structured_content)
    assert result.is_error is False, data
    assert data["error"] is None
    return data


async def all_sessions(client: Client) -> dict[str, Json]:
    data = await told(
        client, "codex_sessions", limit=100, include_archived=True, include_subagents=True
    )
    assert data["next_cursor"] is None
    assert data["total"] == len(data["sessions"])
    return {session["thread_id"]: session for session in data["sessions"]}


def row(used: Sequence[Used]) -> Json:
    """Return what a row of codex_usage must tell of *used*."""
    cost = pytest.approx(sum(each.cost(PRICES) for each in used), abs=2e-6)
    return counted(used) | {
        "requests": len(used),
        "threads": len({each.thread_id for each in used}),
        "cost_usd": cost,
        "cost_usd_known": cost,
    }


def groups(used: Sequence[Used], key: Callable[[Used], str]) -> dict[str, Json]:
    keys = {key(each) for each in used}
    return {name: row([each for each in used if key(each) == name]) for name in keys}


def day_in(zone: ZoneInfo) -> Callable[[Used], str]:
    return lambda used: datetime.fromtimestamp(used.at_ms / 1000, zone).date().isoformat()


def keyed(report: Json) -> dict[str, Json]:
    """Return a report's groups by their keys."""
    rows = {
        group["key"]: {k: v for k, v in group.items() if k != "key"} for group in report["groups"]
    }
    assert len(rows) == len(report["groups"])
    return rows


def stamp(ms: float) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


@pytest.mark.every_pair
async def test_usage_is_what_the_model_answered(home: RealHome, state: Path, mode: str) -> None:
    used = home.used()
    by: dict[str, Callable[[Used], str]] = {
        "model": lambda each: each.model,
        "cwd": lambda each: each.cwd,
        "thread": lambda each: each.thread_id,
    }
    async with server(mode, home, state) as client:
        for group_by, key in by.items():
            report = await told(client, "codex_usage", group_by=group_by)
            assert report["totals"] == row(used)
            assert keyed(report) == groups(used, key)
        for zone in (ZoneInfo("UTC"), FAR_EAST, FAR_WEST):
            report = await told(client, "codex_usage", group_by="day", timezone=zone.key)
            assert keyed(report) == groups(used, day_in(zone))
    assert report["sessions_read"] == len(home.threads)
    assert (report["unreadable"], report["notes"], report["unpriced_models"]) == (0, [], [])
    assert report["rate_limits"] is None


@pytest.mark.every_pair
async def test_a_part_of_usage_is_that_part_of_what_the_model_answered(
    home: RealHome, state: Path, mode: str
) -> None:
    used = sorted(home.used(), key=lambda each: each.at_ms)
    # Between two requests with time enough for the first one's answer to be written down.
    gaps = sorted((b.at_ms - a.at_ms, b.at_ms) for a, b in pairwise(used))
    borders = sorted(at - 3 for gap, at in gaps[-4:] if gap > 300)
    first, last = borders[0], borders[-1]
    assert used[0].at_ms < first < last < used[-1].at_ms
    model, thread = used[0].model, used[-1].thread_id
    parts: list[tuple[Json, Callable[[Used], bool]]] = [
        ({"since": stamp(first)}, lambda each: each.at_ms > first),
        ({"until": stamp(last)}, lambda each: each.at_ms < last),
        ({"since": stamp(first), "until": stamp(last)}, lambda each: first < each.at_ms < last),
        ({"since": "1h"}, lambda each: True),
        ({"until": "2020-01-01"}, lambda each: False),
        ({"model": model}, lambda each: each.model == model),
        ({"thread_id": thread}, lambda each: each.thread_id == thread),
        ({"cwd": str(home.other)}, lambda each: each.cwd == str(home.other)),
        ({"cwd": str(home.lab.project)}, lambda each: True),
        (
            {"cwd": str(home.lab.project), "model": model, "until": stamp(last)},
            lambda each: each.model == model and each.at_ms < last,
        ),
    ]
    async with server(mode, home, state) as client:
        for arguments, belongs in parts:
            part = [each for each in used if belongs(each)]
            report = await told(client, "codex_usage", group_by="thread", **arguments)
            assert report["totals"] == row(part), arguments
            assert keyed(report) == groups(part, lambda each: each.thread_id), arguments


@pytest.mark.every_pair
async def test_threads_are_told_as_they_were_made(home: RealHome, state: Path, mode: str) -> None:
    async with server(mode, home, state) as client:
        sessions = await all_sessions(client)
    assert_as_made(sessions, home)


def assert_as_made(sessions: dict[str, Json], home: RealHome) -> None:
    used = home.used()
    assert sessions.keys() == home.threads.keys()
    for thread_id, thread in home.threads.items():
        own = [each for each in used if each.thread_id == thread_id]
        is_child = thread.parent_id is not None
        expected = {
            "title": thread.prompts[0],
            "turn_count": len(thread.prompts),
            "status": thread.status,
            "usage": counted(own),
            "cost_usd": row(own)["cost_usd"],
            "cwd": thread.cwd,
            "model": thread.model,
            "source": "subagent" if is_child else "exec",
            "cli_version": thread.version,
            "parent_thread_id": thread.parent_id,
            "forked_from_id": thread.forked_id,
            "archived": thread.archived,
            "resumable": not thread.archived,
            "rollout_path": str(home.rollout(thread_id)),
            "name": None,
        }
        session = sessions[thread_id]
        assert {key: session[key] for key in expected} == expected
        assert session["rollout_path"].endswith(".zst") is thread.packed


@pytest.mark.parametrize("version", MIGRATING, scope="module")
async def test_threads_that_codex_wrote_anew_are_told_as_before(
    version: str, mode: str, lab: Lab
) -> None:
    """By `codex migrate-rollouts`: a fork keeps what was copied, less the sign that it was."""
    home = RealHome(lab, version)
    left = home.turn("left", home.reply(Shell("true")), home.say("Left."), with_version=OLD)
    first = home.turn("first", home.reply(Shell("true")), home.say("First."), with_version=OLD)
    fork = home.turn("second", home.say("Second."), fork=first)
    again = home.turn("third", home.say("Third."), fork=fork)
    async with server(mode, home, lab.state) as client:
        assert_as_made(await all_sessions(client), home)
        for thread_id in (left, fork, again):
            home.migrate(thread_id)
        assert_as_made(await all_sessions(client), home)
        home.turn("fourth", home.say("Fourth."), resume=again)
        assert_as_made(await all_sessions(client), home)


async def test_turns_are_told_as_they_were_asked(home: RealHome, mode: str) -> None:
    used = home.used()
    async with server(mode, home, home.lab.state) as client:
        for thread_id, thread in home.threads.items():
            data = await told(client, "codex_sessions", thread_id=thread_id, turns=50)
            turns = list(reversed(data["turns"]))
            assert [turn["prompt"] for turn in turns] == thread.prompts
            assert data["session"]["turn_count"] == len(turns)
            assert data["next_cursor"] is None
            for turn, prompt in zip(turns, thread.prompts, strict=True):
                own = [e for e in used if (e.thread_id, e.prompt) == (thread_id, prompt)]
                assert turn["usage"] == counted(own), prompt


async def test_a_plain_list_leaves_out_archive_and_sub_agents(home: RealHome, mode: str) -> None:
    async with server(mode, home, home.lab.state) as client:
        data = await told(client, "codex_sessions", limit=100)
        pages: list[str] = []
        cursor: Json = {}
        while True:
            page = await told(client, "codex_sessions", limit=4, **cursor)
            pages += [session["thread_id"] for session in page["sessions"]]
            assert page["total"] == data["total"]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
    listed = [session["thread_id"] for session in data["sessions"]]
    assert set(listed) == {
        thread.thread_id
        for thread in home.threads.values()
        if not thread.archived and thread.parent_id is None
    }
    assert pages == listed
    active = [session["last_active_at"] for session in data["sessions"]]
    assert active == sorted(active, reverse=True)


@pytest.mark.parametrize("version", NEWER, scope="module")
async def test_the_oldest_codex_resumes_less(home: RealHome, mode: str, state: Path) -> None:
    async with server(mode, home, state, version=OLD) as client:
        sessions = await all_sessions(client)
    can = {thread_id for thread_id, session in sessions.items() if session["resumable"]}
    assert can == {
        thread.thread_id
        for thread in home.threads.values()
        if not (thread.archived or thread.paginated or thread.packed)
    }
    assert can


@pytest.mark.parametrize("mode", MODES[:1])
async def test_the_commands_tell_a_person_the_same(home: RealHome, mode: str) -> None:
    thread_id = home.used()[0].thread_id
    everything = {"include_archived": True, "include_subagents": True, "limit": 100}
    asked: list[tuple[str, Json]] = [
        ("usage", {}),
        ("usage", {"group_by": "thread", "timezone": "UTC", "since": "1h"}),
        ("usage", {"group_by": "model", "cwd": str(home.other)}),
        ("sessions", everything),
        ("sessions", {"query": "answer second"}),
        ("sessions", {"thread_id": thread_id, "turns": 2}),
    ]
    async with server(mode, home, home.lab.state) as client:
        for command, arguments in asked:
            tool = await told(client, f"codex_{command}", **arguments)
            assert command_result(home, command, arguments) == without_ages(tool), arguments


def run_command(home: RealHome, command: str, arguments: Json) -> subprocess.CompletedProcess[str]:
    """Run a person's command with the arguments of the tool it stands for."""
    words: list[str] = []
    for name, value in arguments.items():
        if name == "query":
            words += value.split()
        else:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    settings = ("--state-dir", str(home.lab.state), "--codex-bin", str(real_codex(home.version)))
    return subprocess.run(
        [server_program(), command, "--json", *words, *settings],
        env=environment(home.lab),
        cwd=home.lab.project,
        capture_output=True,
        text=True,
        timeout=60,
    )


def command_result(home: RealHome, command: str, arguments: Json) -> Json:
    done = run_command(home, command, arguments)
    assert done.returncode == 0, done.stderr
    return without_ages(cast("Json", json.loads(done.stdout)))


def without_ages(result: Json) -> Json:
    limits = result.get("rate_limits")
    return result | {"rate_limits": limits and {**limits, "age_s": None}}


@pytest.mark.parametrize("command", ["sessions", "usage"])
def test_a_command_writes_nothing_to_a_stderr_that_is_no_terminal(
    home: RealHome, command: str
) -> None:
    done = run_command(home, command, {})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("mode", MODES[:1])
async def test_looking_changes_nothing_of_codex(home: RealHome, mode: str, tmp_path: Path) -> None:
    # But for what Codex itself makes there for its own start, when it is asked its version.
    def content() -> dict[str, tuple[str, int]]:
        return {k: v for k, v in content_of(home.lab.home).items() if not k.startswith("tmp/")}

    before = content()
    async with server(mode, home, tmp_path) as client:
        await all_sessions(client)
        await told(client, "codex_sessions", query="answer")
        await told(client, "codex_sessions", thread_id=home.used()[0].thread_id)
        await told(client, "codex_usage")
    for command in ("sessions", "usage"):
        command_result(home, command, {})
    assert content() == before


async def test_limits_come_from_the_newest_headers(version: str, mode: str, lab: Lab) -> None:
    now = int(time.time())

    def limits(primary: float, secondary: float) -> tuple[tuple[str, str], ...]:
        return (
            ("x-codex-primary-used-percent", str(primary)),
            ("x-codex-primary-window-minutes", "300"),
            ("x-codex-primary-reset-at", str(now + 3600)),
            ("x-codex-secondary-used-percent", str(secondary)),
            ("x-codex-secondary-window-minutes", "10080"),
            ("x-codex-secondary-reset-at", str(now - 60)),
        )

    older = Reply((Shell("true"),), headers=limits(12.5, 30))
    lab.script("told twice", older, Reply((Say("ok"),), headers=limits(21.5, 40)))
    async with connect(mode, real_codex(version), lab) as client:
        for prompt in ("told twice", "not told"):
            await call(client, "codex_run", prompt=prompt)
        found = (await told(client, "codex_usage"))["rate_limits"]
    assert 0 <= found["age_s"] <= 60
    assert now <= datetime.fromisoformat(found["observed_at"]).timestamp() <= time.time()
    assert found["primary"] == {
        "used_percent": 21.5,
        "window_minutes": 300,
        "resets_at": stamp((now + 3600) * 1000).replace("+00:00", "Z"),
        "expired": False,
    }
    assert found["secondary"]["used_percent"] == 40
    assert found["secondary"]["window_minutes"] == 10080
    assert found["secondary"]["expired"] is True


async def test_a_run_costs_what_its_requests_cost(version: str, mode: str, lab: Lab) -> None:
    one, two, three = Usage(5000, 1000, 70, 30), Usage(8000, 6000, 700, 500), Usage(900, 50, 9, 1)
    enough = {"error": {"type": "usage_limit_reached", "message": "Enough."}}
    lab.script("first", Reply((Shell("true"),), one), say("one", two))
    lab.script("second", say("two", three))
    lab.script("third", Reply((Shell("true"),), one), Refuse(429, enough))
    async with connect(mode, real_codex(version), lab) as client:
        first = await call(client, "codex_run", prompt="first")
        thread = first["thread_id"]
        second = await call(client, "codex_resume", thread_id=thread, prompt="second")
        third = await call(client, "codex_resume", thread_id=thread, prompt="third")
        session = (await told(client, "codex_sessions", thread_id=thread))["session"]
    assert first["cost_usd"] == price(first["model"], one, two)
    assert second["cost_usd"] == price(first["model"], three)
    assert third["status"] == "failed"
    assert third["cost_usd"] == price(first["model"], one)
    assert session["cost_usd"] == price(first["model"], one, two, three, one)


def price(model: str, *usages: Usage) -> object:
    """Return what requests of these usages cost together, each priced for itself."""
    now = int(time.time() * 1000)
    used = (Used(now, "", "", model, "", usage) for usage in usages)
    return pytest.approx(sum(each.cost(PRICES) for each in used), abs=2e-6)


async def test_long_requests_are_priced_one_by_one(version: str, mode: str) -> None:
    long, short = Usage(300_000, 200_000, 90, 9), Usage(200_000, 10, 50, 5)
    with open_lab(version) as lab:
        # Codex compacts such a thread at once; what that takes is part of the turn.
        lab.script("long", Reply((Shell("true"),), long), say("done", short))
        lab.script("short", Reply((Shell("true"),), short), say("done", short))
        async with connect(mode, real_codex(version), lab) as client:
            mixed = await call(client, "codex_run", prompt="long", model=LONG_CONTEXT)
            brief = await call(client, "codex_run", prompt="short", model=LONG_CONTEXT)
            report = await told(client, "codex_usage", group_by="model")
        mixed_usages, brief_usages = answered(lab, "long"), answered(lab, "short")
    assert mixed_usages.count(long) == 1 < len(mixed_usages)
    assert len(brief_usages) > 1
    assert mixed["cost_usd"] == price(LONG_CONTEXT, *mixed_usages)
    assert brief["cost_usd"] == price(LONG_CONTEXT, *brief_usages)
    assert report["totals"]["cost_usd"] == price(LONG_CONTEXT, *mixed_usages, *brief_usages)


def answered(lab: Lab, prompt: str) -> list[Usage]:
    """Return the usage of each reply to *prompt*."""
    steps = (seen.step for seen in lab.model.requests if seen.prompt == prompt)
    return [step.usage for step in steps if isinstance(step, Reply)]


@pytest.mark.parametrize("version", WITH_EPHEMERAL, scope="module")
async def test_an_ephemeral_run_costs_what_its_sum_tells(version: str, mode: str, lab: Lab) -> None:
    brief, long = Usage(9000, 90, 9, 1), Usage(200_000, 10, 50, 5)
    lab.script("brief", Reply((Shell("true"),), brief), say("done", brief))
    lab.script("long", Reply((Shell("true"),), long), say("done", long))
    asked: Json = {"model": LONG_CONTEXT, "ephemeral": True}
    async with connect(mode, real_codex(version), lab) as client:
        first = await call(client, "codex_run", prompt="brief", **asked)
        second = await call(client, "codex_run", prompt="long", **asked)
        report = await told(client, "codex_usage")
    assert first["cost_usd"] == price(LONG_CONTEXT, brief, brief)
    # It would seem one long request, of which each token costs double.
    assert second["usage"]["input_tokens"] > 272_000
    assert second["cost_usd"] is None
    assert report["totals"]["requests"] == 0


async def test_an_unknown_model_has_no_cost(version: str, mode: str) -> None:
    with open_lab(version) as lab:
        lab.model.write_config(lab.home, model="no-such-model")
        async with connect(mode, real_codex(version), lab) as client:
            first = await call(client, "codex_run", prompt="a")
            priced = await call(client, "codex_run", prompt="b", model="gpt-5.4")
            report = await told(client, "codex_usage", group_by="model")
            shown = await told(client, "codex_sessions", thread_id=first["thread_id"])
    assert first["model"] == "no-such-model"
    assert first["usage"]["total_tokens"] == 1234
    assert first["cost_usd"] is shown["session"]["cost_usd"] is None
    assert report["unpriced_models"] == ["no-such-model"]
    assert report["totals"]["cost_usd"] is None
    assert report["totals"]["cost_usd_known"] == priced["cost_usd"] == price("gpt-5.4", Usage())
    assert keyed(report)["no-such-model"]["cost_usd_known"] == 0
    assert keyed(report)["gpt-5.4"]["cost_usd"] == priced["cost_usd"]


@pytest.mark.parametrize(("tier", "times"), [("fast", 2.5), ("flex", 0.5)])
async def test_a_run_costs_what_its_service_tier_costs(
    version: str, mode: str, tier: str, times: float
) -> None:
    used = (Usage(9000, 4000, 70, 30), Usage(8000, 6000, 700, 500))
    with open_lab(version, config=f'service_tier = "{tier}"\n') as lab:
        lab.script("tier", Reply((Shell("true"),), used[0]), say("done", used[1]))
        async with connect(mode, real_codex(version), lab) as client:
            done = await call(client, "codex_run", prompt="tier")
            report = await told(client, "codex_usage")
            lost = done
            if number(version) > (0, 98, 0):
                lost = await call(client, "codex_run", prompt="tier", ephemeral=True)
        sent = {seen.body.get("service_tier") for seen in lab.model.requests}
    name = "priority" if tier == "fast" else tier
    warned = [each for each in done["warnings"] if each.startswith("service_tier: ")]
    if number(version) < (0, 163, 0):  # They know no tiers, or send one that nothing records.
        assert sent <= {None, name}
        assert report["notes"] == []
        assert len(warned) == (number(version) > (0, 98, 0))
        times = 1.0
    else:
        assert sent == {name}
        assert any(f": 2 in {name}." in note for note in report["notes"])
        assert warned == []
    assert any("service_tier: " in each for each in lost["warnings"]) == (lost is not done)
    now = int(time.time() * 1000)
    standard = sum(Used(now, "", "", done["model"], "", each).cost(PRICES) for each in used)
    for cost in (done["cost_usd"], report["totals"]["cost_usd"]):
        assert cost == pytest.approx(times * standard, abs=2e-6)


async def test_the_limits_of_a_model_s_own_bucket_are_told_beside_the_account_s(
    version: str, mode: str, lab: Lab
) -> None:
    def headers(family: str, percent: float) -> tuple[tuple[str, str], ...]:
        start = f"x-{family}-primary"
        return (
            (f"{start}-used-percent", str(percent)),
            (f"{start}-window-minutes", "300"),
            (f"{start}-reset-at", "4102444800"),
        )

    name = (("x-codex-bengalfox-limit-name", "GPT-5.3-Codex-Spark"),)
    account = Reply((Say("ok"),), headers=headers("codex", 76))
    spark = Reply((Say("ok"),), headers=headers("codex-bengalfox", 12) + name)
    lab.script("account", account)
    lab.script("spark", spark)
    async with connect(mode, real_codex(version), lab) as client:
        for prompt in ("account", "spark"):
            await call(client, "codex_run", prompt=prompt)
        found = (await told(client, "codex_usage"))["rate_limits"]
    assert found["primary"]["used_percent"] == 76
    buckets = [
        (each["limit_id"], each["limit_name"], each["primary"]["used_percent"])
        for each in found["other_buckets"]
    ]
    known = [("codex_bengalfox", "GPT-5.3-Codex-Spark", 12)]
    assert buckets == (known if number(version) > (0, 98, 0) else [])
