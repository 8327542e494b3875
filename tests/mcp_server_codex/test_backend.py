"""What calls need is opened at the first call, once, and closed at the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

import anyio
import pytest
from mcp import Client
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from mcp_server_codex.app import make_server
from mcp_server_codex.backend import Backend
from mcp_server_codex.settings import read_settings
from support.scripted_engine import ScriptedEngine


def fail(problem: str) -> NoReturn:
    raise AssertionError(problem)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "home"))
    return ScriptedEngine(tmp_path / "home")


async def test_a_session_without_a_call_opens_nothing(
    mode: str, tmp_path: Path, engine: ScriptedEngine
) -> None:
    state = tmp_path / "state"
    server = make_server(read_settings(["--state-dir", str(state)], {}, fail), engine)
    async with Client(server, mode=cast("Any", mode)) as client:
        await client.list_tools()
        await client.list_prompts()
        assert not state.exists()
        await client.list_resources()
        assert state.exists()


async def test_calls_at_once_open_one_backend(tmp_path: Path, engine: ScriptedEngine) -> None:
    settings = read_settings(["--state-dir", str(tmp_path / "state")], {}, fail)
    found: list[object] = []

    async def open_calls(backend: Backend) -> None:
        found.append(await backend.opened())

    async with (
        Backend(settings, engine, tmp_path).serving() as backend,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(5):
            tasks.start_soon(open_calls, backend)
    assert len({id(each) for each in found}) == 1
    assert len(found) == 5


class Broken(ScriptedEngine):
    """Cannot be opened at the first try."""

    tries = 0

    def opened(self) -> Any:
        self.tries += 1
        if self.tries == 1:
            raise OSError("no space left")
        return super().opened()


async def test_what_cannot_be_opened_is_an_error_of_the_call_and_is_tried_again(
    mode: str, tmp_path: Path, engine: ScriptedEngine
) -> None:
    settings = read_settings(["--state-dir", str(tmp_path / "state")], {}, fail)
    server = make_server(settings, Broken(engine.home))
    async with Client(server, mode=cast("Any", mode)) as client:
        with pytest.raises(MCPError, match="no space left"):
            await client.call_tool("codex_sessions", {})
        assert (await client.call_tool("codex_sessions", {})).is_error is False


async def test_a_run_that_is_called_after_the_end_has_begun_is_interrupted(
    mode: str, tmp_path: Path, engine: ScriptedEngine
) -> None:
    settings = read_settings(["--state-dir", str(tmp_path / "state")], {}, fail)
    server = make_server(settings, engine)
    lifespan = server.lifespan

    @asynccontextmanager
    async def ending(of: Server[Backend]) -> AsyncGenerator[Backend]:
        async with lifespan(of) as backend:
            backend.close()
            yield backend
            await backend.closed()

    server.lifespan = ending
    async with Client(server, mode=cast("Any", mode)) as client:
        with anyio.fail_after(30):
            result = await client.call_tool("codex_run", {"prompt": "hang", "cwd": str(tmp_path)})
    assert result.structured_content["error"]["kind"] == "interrupted"
