"""App-servers that wait for a turn: used once, for the right turn, and never left behind."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import anyio
import pytest

from codex_tools.codex.turn_result import TurnProgress
from codex_tools.engines import spares
from codex_tools.engines.app_server import AppServerEngine
from codex_tools.engines.app_server_preparation import OLDEST
from codex_tools.engines.exec import ExecEngine
from codex_tools.engines.guard import processes
from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import WITH_APP_SERVER, number
from support.engine_turns import run, untouched
from support.lab import Lab, app_servers, commands, environment, marked, until

SLEEPERS = "setsid sleep 601 & (setsid sh -c 'sleep 602 &' &) ; sleep 600"


@pytest.fixture(params=WITH_APP_SERVER, scope="module")
def version(request: pytest.FixtureRequest) -> str:
    """A Codex version that this engine runs."""
    return str(request.param)


@pytest.fixture
def mark(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give this process the environment of a server in *lab*, and a mark; return the mark."""
    plain = environment(lab) | {"TURN_MARK": str(uuid.uuid4())}
    for name in {*os.environ} - {*plain, "PYTEST_CURRENT_TEST"}:
        monkeypatch.delenv(name)
    for name, value in plain.items():
        monkeypatch.setenv(name, value)
    return plain["TURN_MARK"]


@pytest.fixture
def engine(codex: Path, version: str) -> AppServerEngine:
    return AppServerEngine(str(codex), is_only=number(version) < OLDEST)


async def spare_of(mark: str, engine: AppServerEngine) -> int:
    """Wait until one spare is ready, and return its id."""
    kept = engine._spares  # pyright: ignore[reportPrivateUsage]
    assert kept is not None
    await until(lambda: any(each.server for each in kept._entries))  # pyright: ignore
    await until(lambda: len(app_servers(mark)) == 1)
    return app_servers(mark)[0]


async def test_a_turn_takes_the_spare_and_another_takes_its_place(
    engine: AppServerEngine, codex: Path, lab: Lab, mark: str
) -> None:
    before = untouched(lab.home)
    other = lab.root / "other"
    other.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=other, check=True)  # noqa: ASYNC221
    async with engine.keep_spares():
        assert app_servers(mark) == []
        first = await run(engine, lab, "first")
        spare = await spare_of(mark, engine)
        lab.script("second", do(Shell("pwd > where; true")), say("done"))
        second = await run(engine, lab, "second", cwd=other, sandbox="workspace-write")
        assert spare not in app_servers(mark)
        next_spare = await spare_of(mark, engine)
        assert next_spare != spare
        assert (other / "where").read_text().strip() == str(other)
        third = await run(engine, lab, "third", thread_id=second.result.thread_id, cwd=other)
        assert next_spare not in app_servers(mark)
    assert marked(mark) == []
    assert [each.kind for each in (first, second, third)] == [None, None, None]
    assert third.result.usage is not None
    assert third.result.usage.input_tokens == 3 * 1200
    assert untouched(lab.home) == before
    again = await run(ExecEngine(str(codex)), lab, "x", thread_id=third.result.thread_id, cwd=other)
    assert again.kind is None


async def test_a_spare_holds_the_lock_of_its_turn_and_leaves_nothing_behind(
    engine: AppServerEngine, lab: Lab, mark: str
) -> None:
    path = lab.root / "lock"
    held = path.open("w")
    fcntl.flock(held, fcntl.LOCK_EX)

    def is_locked() -> bool:
        with path.open("w") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    lab.script("sleep", do(Shell(SLEEPERS)), say("never"))
    async with engine.keep_spares():
        await run(engine, lab, "first")
        await spare_of(mark, engine)

        def report(progress: TurnProgress) -> None:
            if progress.started and not held.closed:
                held.close()

        async with anyio.create_task_group() as tasks:

            async def sleep() -> None:
                fds = (held.fileno(),)
                more = {"sandbox": "danger-full-access", "held": fds}
                await run(engine, lab, "sleep", report, **more)

            tasks.start_soon(sleep)
            await until(lambda: sum("sleep 60" in each for each in commands(mark)) >= 3)
            assert held.closed
            assert is_locked()
            tasks.cancel_scope.cancel()
        assert not is_locked()
        assert not [each for each in commands(mark) if "sleep 60" in each]
        assert len(app_servers(mark)) == 1
    assert marked(mark) == []


async def test_a_new_login_and_another_environment_get_no_old_spare(
    engine: AppServerEngine, lab: Lab, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = lab.home / "config.toml"
    config.write_text(config.read_text() + "requires_openai_auth = true\n")
    login = lab.home / "auth.json"
    login.write_text(json.dumps({"OPENAI_API_KEY": "sk-first"}))
    async with engine.keep_spares():
        await run(engine, lab, "one")
        await spare_of(mark, engine)
        login.write_text(json.dumps({"OPENAI_API_KEY": "sk-second"}))
        await run(engine, lab, "two")
        await spare_of(mark, engine)
        monkeypatch.setenv("SEEN_BY_COMMANDS", "yes")
        lab.script("three", do(Shell("echo $SEEN_BY_COMMANDS")), say("done"))
        ran = await run(engine, lab, "three")
        assert b'"yes\\n"' in b"".join(ran.lines)
    keys = {seen.prompt: seen.authorization for seen in lab.model.requests}
    assert keys == {"one": "Bearer sk-first", "two": "Bearer sk-second", "three": keys["two"]}
    assert marked(mark) == []


@pytest.mark.parametrize("killed", ["spare", "guard"])
async def test_a_spare_that_has_died_is_not_used(
    engine: AppServerEngine, lab: Lab, mark: str, killed: str
) -> None:
    async with engine.keep_spares():
        await run(engine, lab, "one")
        spare = await spare_of(mark, engine)
        victim = spare if killed == "spare" else dict(processes())[spare]
        os.kill(victim, signal.SIGKILL)
        await until(lambda: not app_servers(mark))
        assert (await run(engine, lab, "two")).kind is None
        await spare_of(mark, engine)
    assert marked(mark) == []


async def test_a_spare_that_dies_as_it_is_taken_is_replaced(
    codex: Path, lab: Lab, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no other engine could run the turn."""
    engine = AppServerEngine(str(codex), is_only=True)
    take = spares.Spares.take
    async with engine.keep_spares():
        await run(engine, lab, "one")
        spare = await spare_of(mark, engine)

        def take_and_kill(kept: spares.Spares, key: spares.SpareKey) -> spares.Spare | None:
            found = take(kept, key)
            os.kill(spare, signal.SIGKILL)
            return found

        monkeypatch.setattr(spares.Spares, "take", take_and_kill)
        assert (await run(engine, lab, "two")).kind is None
    assert [seen.prompt for seen in lab.model.requests] == ["one", "two"]
    assert marked(mark) == []


async def test_a_spare_that_waits_too_long_is_ended(
    engine: AppServerEngine, lab: Lab, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spares, "IDLE_LIMIT_S", 1.0)
    async with engine.keep_spares():
        await run(engine, lab, "one")
        await spare_of(mark, engine)
        await until(lambda: not marked(mark))
        second = await run(engine, lab, "two")
        assert second.kind is None
        await spare_of(mark, engine)
    assert marked(mark) == []


IDLE = """
import sys
from pathlib import Path
import anyio
from codex_tools.engines.app_server import AppServerEngine
from codex_tools.engines.engine import TurnRequest
from codex_tools.engines.environment import EnvironmentRules

async def main():
    engine = AppServerEngine(sys.argv[1], is_only=True)
    cwd = Path(sys.argv[2])
    program = await engine.prepare(cwd, EnvironmentRules())
    request = TurnRequest(program, "x", cwd, "read-only", 600.0, 600.0)
    async with engine.keep_spares():
        async with engine.open_turn(request, lambda _: None) as events:
            async for event in events:
                pass
        print("idle", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


async def test_an_idle_spare_does_not_survive_the_death_of_its_process(
    codex: Path, lab: Lab, mark: str
) -> None:
    with subprocess.Popen(  # noqa: ASYNC220 - nothing waits for it but polls
        [sys.executable, "-c", IDLE, str(codex), str(lab.project)],
        stdout=subprocess.PIPE,
    ) as bridge:
        await until(lambda: len(app_servers(mark)) == 2)  # The turn's, and its replacement.
        await until(lambda: len(app_servers(mark)) == 1)
        os.kill(bridge.pid, signal.SIGKILL)
        bridge.wait()
        await until(lambda: not [pid for pid in marked(mark) if pid != os.getpid()], 20)
