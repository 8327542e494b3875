"""codex_sessions over the real Codex: find threads, go on in them, see them at work."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import anyio
import pytest
from mcp import Client

from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import VERSIONS, number, real_codex
from support.lab import Json, Lab, call, connect, open_lab, until
from support.real_home import (
    DAYS_9,
    MINUTES_10,
    NEW,
    OLD,
    PACK,
    age,
    ask,
    content_of,
    plain_exec,
    thread_started,
)

LOCKING = [version for version in VERSIONS if number(version) >= (0, 147, 0)]
"""Versions that lock a thread while they work on it."""


async def listed(client: Client, **arguments: object) -> list[Json]:
    """Return the threads that codex_sessions lists."""
    result = await client.call_tool("codex_sessions", arguments)
    data = cast("Json", result.structured_content)
    assert result.is_error is False, data
    return data["sessions"]


async def found(client: Client, **arguments: object) -> list[str]:
    """Return the ids of the threads that codex_sessions lists."""
    return [session["thread_id"] for session in await listed(client, **arguments)]


async def newest_turn(client: Client, thread_id: str) -> Json:
    """Return the newest turn of a thread."""
    result = await client.call_tool("codex_sessions", {"thread_id": thread_id, "turns": 1})
    assert result.is_error is False, result
    return cast("Json", result.structured_content)["turns"][0]


async def status_of(client: Client, thread_id: str) -> str:
    """Return how a thread stands, told alike by the list and by itself."""
    result = await client.call_tool("codex_sessions", {"thread_id": thread_id})
    data = cast("Json", result.structured_content)
    in_list = {session["thread_id"]: session["status"] for session in await listed(client)}
    assert data["session"]["status"] == in_list[thread_id]
    return in_list[thread_id]


def exec_to_end(lab: Lab, codex: Path, prompt: str, *options: str, cwd: Path | None = None) -> str:
    """Run `codex exec` outside of any server; return the thread's id."""
    process = plain_exec(lab, codex, *options, cwd=cwd)
    output, errors = process.communicate(prompt, timeout=60)
    assert process.returncode == 0, errors
    return thread_started(output)


@contextmanager
def exec_at_work(lab: Lab, codex: Path, prompt: str) -> Generator[subprocess.Popen[str]]:
    """Run `codex exec` outside of any server, until it waits for the model."""
    process = plain_exec(lab, codex)
    try:
        ask(process, prompt)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def was_asked(lab: Lab, prompt: str) -> bool:
    return any(seen.prompt == prompt for seen in lab.model.requests)


def written_long_ago(lab: Lab) -> None:
    """Make all rollouts look as if nothing had been written for ten minutes."""
    for path in lab.rollouts():
        age(path, MINUTES_10)


def rollouts_of(lab: Lab) -> dict[str, tuple[str, int]]:
    """Return a digest and the modification time of each rollout."""
    return {k: v for k, v in content_of(lab.home).items() if k.startswith("sessions/")}


def pack(lab: Lab, thread_id: str) -> Path:
    """Let the newest Codex compress a thread; return its rollout."""
    (path,) = (path for path in lab.rollouts() if thread_id in path.name)
    age(path, DAYS_9)
    exec_to_end(lab, real_codex(NEW), "pack it", "-m", "gpt-5.5", *PACK)
    return path.with_name(f"{path.name}.zst")


async def test_a_thread_is_found_by_what_was_said_and_goes_on(
    codex: Path, mode: str, lab: Lab
) -> None:
    inside = lab.project / "inside"
    inside.mkdir()
    lab.script("Explain the walrus operator", say("Assignment, called a narwhal by nobody."))
    lab.script("And the ellipsis?", say("Three dots."))
    before = datetime.now(UTC)
    async with connect(mode, codex, lab) as client:
        first = await call(
            client, "codex_run", prompt="Explain the walrus operator", cwd=str(inside)
        )
        thread = first["thread_id"]
        between = datetime.now(UTC)
        decoy = (await call(client, "codex_run", prompt="Something else"))["thread_id"]
        by_prompt = await found(client, query="walrus")
        by_answer = await found(client, query="NARWHAL assign")
        by_both = await found(client, query='operator "called a narwhal"')
        by_neither = await found(client, query="walrus dromedary")
        below = await found(client, cwd=str(inside))
        above = await found(client, cwd=str(lab.project))
        beside = await found(client, cwd=str(lab.project / "ins"))
        newer = await found(client, since=between.isoformat())
        older = await found(client, until=between.isoformat())
        since = await found(client, since=before.isoformat())
        an_hour = await found(client, since="1h", query="walrus")
        none = await found(client, until=(before - timedelta(seconds=1)).isoformat())

        (chosen,) = await found(client, query="walrus")
        again = await call(client, "codex_resume", thread_id=chosen, prompt="And the ellipsis?")
        (session,) = await listed(client, query="dots")
        order = await found(client)
    assert by_prompt == by_answer == by_both == below == older == an_hour == [thread]
    assert by_neither == beside == none == []
    assert newer == [decoy]
    assert above == since == [decoy, thread]
    assert again["thread_id"] == thread
    assert again["final_response"] == "Three dots."
    assert "walrus operator" in str(lab.model.requests[-1].body["input"])
    assert session["thread_id"] == thread
    assert session["turn_count"] == 2
    assert session["title"] == "Explain the walrus operator"
    assert session["usage"]["input_tokens"] == 2400
    assert order == [thread, decoy]


async def test_a_thread_from_the_terminal_is_found_and_goes_on(
    codex: Path, mode: str, lab: Lab
) -> None:
    lab.script("Paint the bikeshed", say("It is mauve now."))
    lab.script("And the door?", say("Beige."))
    async with connect(mode, codex, lab) as client:
        assert await found(client) == []
        thread = exec_to_end(lab, codex, "Paint the bikeshed")
        (chosen,) = await found(client, query="mauve", cwd=str(lab.project), source="exec")
        again = await call(client, "codex_resume", thread_id=chosen, prompt="And the door?")
        both = await found(client, query="bikeshed beige")
    assert chosen == again["thread_id"] == thread
    assert again["final_response"] == "Beige."
    assert "mauve" in str(lab.model.requests[-1].body["input"])
    assert both == [thread]


async def test_a_thread_is_told_by_the_request_behind_the_context_of_a_client(
    codex: Path, mode: str, lab: Lab
) -> None:
    context = "# Context from my IDE setup:\n\n## Active file: zebra.py\n\n"
    prompt = f"{context}## My request for Codex:\nPaint the bikeshed"
    lab.script(prompt, say("It is mauve now."))
    async with connect(mode, codex, lab) as client:
        run = await call(client, "codex_run", prompt=prompt)
        (session,) = await listed(client, query="bikeshed mauve")
        assert await found(client, query="zebra") == []
        turn = await newest_turn(client, run["thread_id"])
    assert session["thread_id"] == run["thread_id"]
    assert session["title"] == turn["prompt"] == "Paint the bikeshed"
    assert context in str(lab.model.requests[0].body["input"]).replace("\\n", "\n")


@pytest.mark.parametrize("model", [None, "gpt-5", "codex-mini-latest"])
async def test_a_thread_tells_of_the_commands_and_files_that_its_run_told_of(
    codex: Path, mode: str, lab: Lab, version: str, model: str | None
) -> None:
    """Each model gets another shell tool: 0.60.1 has three, with outputs of two forms."""
    patch = "*** Begin Patch\n*** Add File: new.txt\n+x\n*** End Patch\nEOF"
    (lab.project / "sub").mkdir()
    prompt = lab.script(
        "work",
        do(Shell("sleep 0.1; exit 3")),
        do(Shell("sleep 0.1; echo 'Exit code: 9'")),
        do(Shell(f"apply_patch <<'EOF'\n{patch}")),
        do(Shell(f"cd sub && apply_patch <<'EOF'\n{patch}")),
        say("done"),
    )
    given = {} if model is None else {"model": model}
    async with connect(mode, codex, lab) as client:
        run = await call(client, "codex_run", prompt=prompt, sandbox="workspace-write", **given)
        turn = await newest_turn(client, run["thread_id"])
    files = [(file["path"], file["kind"]) for file in turn["files_changed"]]
    assert files == [(file["path"], file["kind"]) for file in run["files_changed"]]
    if (number(version), model) != ((0, 60, 1), None):  # There, only a tool of its own patches.
        made = (lab.project / "new.txt", lab.project / "sub" / "new.txt")
        assert files == [(str(path), "add") for path in made]
    codes = [(command["exit_code"], command["status"]) for command in turn["commands"]]
    assert codes[:2] == [(3, "failed"), (0, "completed")]
    if number(version) != (0, 98, 0):  # 0.98 leaves quick commands out of its stream.
        assert turn["commands"] == run["commands"]


async def test_a_run_of_this_server_is_told_as_running(codex: Path, mode: str, lab: Lab) -> None:
    """However long it has been silent, and by whichever server is asked."""
    lab.script("slow", say("slow answer", delay_s=8))
    results: list[Json] = []
    at_work: list[Json] = []
    async with connect(mode, codex, lab) as one, connect(mode, codex, lab) as two:

        async def run() -> None:
            results.append(await call(one, "codex_run", prompt="slow"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await until(lambda: was_asked(lab, "slow"))
            await until(lab.rollouts)
            at_work += await listed(one)
            written_long_ago(lab)
            at_work += await listed(one)
            at_work += await listed(two)
            assert results == []
        thread = results[0]["thread_id"]
        assert await status_of(one, thread) == await status_of(two, thread) == "completed"
    assert [(each["thread_id"], each["status"]) for each in at_work] == [(thread, "running")] * 3


@pytest.mark.parametrize("version", LOCKING, scope="module")
async def test_a_codex_in_the_terminal_is_told_as_running_until_it_is_killed(
    version: str, mode: str, lab: Lab
) -> None:
    lab.script("slow", say("never heard", delay_s=120))
    async with connect(mode, real_codex(version), lab) as client:
        with exec_at_work(lab, real_codex(version), "slow") as process:
            await until(lambda: was_asked(lab, "slow"))
            (thread,) = await found(client)
            assert await status_of(client, thread) == "running"
            written_long_ago(lab)
            assert await status_of(client, thread) == "running"
            busy = await call(client, "codex_resume", thread_id=thread, prompt="b")
            assert busy["error"]["kind"] == "thread_busy"
            process.kill()
            process.wait()
            assert await status_of(client, thread) == "interrupted"
        lab.script("go on", say("Gone on."))
        again = await call(client, "codex_resume", thread_id=thread, prompt="go on")
        assert (again["thread_id"], again["final_response"]) == (thread, "Gone on.")
        assert await status_of(client, thread) == "completed"


async def test_a_stopped_run_is_told_as_interrupted(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    lab.script("slow", say("never heard", delay_s=120))
    async with connect(mode, codex, lab) as client:
        run = await call(client, "codex_run", prompt="slow", wait_s=0)
        await until(lambda: was_asked(lab, "slow"))
        await client.call_tool("codex_stop", {"run_id": run["run_id"]})
        written_long_ago(lab)
        (session,) = await listed(client)
    # 0.60.1 may end before it has written down that it was stopped.
    endings = ("interrupted", "unknown") if version == OLD else ("interrupted",)
    assert session["status"] in endings
    assert session["usage"]["total_tokens"] == 0


@pytest.mark.parametrize("maker", [OLD, NEW])
async def test_a_compressed_thread_is_for_newer_codex_only(mode: str, maker: str) -> None:
    with open_lab(OLD) as lab:
        thread = exec_to_end(lab, real_codex(maker), "Remember the heron")
        packed = pack(lab, thread)
        await until(packed.exists)
        before = rollouts_of(lab)
        async with connect(mode, real_codex(OLD), lab) as client:
            (session,) = await listed(client, query="heron")
            refused = await call(client, "codex_resume", thread_id=thread, prompt="Go on")
        assert rollouts_of(lab) == before
        assert session["thread_id"] == thread
        assert session["rollout_path"] == str(packed)
        assert session["resumable"] is False
        assert refused["error"]["kind"] == "codex_unsupported"
        assert OLD in refused["error"]["message"]
        assert not was_asked(lab, "Go on")

        async with connect(mode, real_codex(NEW), lab) as client:
            (session,) = await listed(client, query="heron")
            resumed = await call(client, "codex_resume", thread_id=thread, prompt="Go on")
            (after,) = await listed(client, query="heron")
        assert session["resumable"] is True
        assert resumed["status"] == "completed"
        assert resumed["thread_id"] == thread
        assert "heron" in str(lab.model.requests[-1].body["input"])
        assert after["turn_count"] == 2
        assert after["usage"]["input_tokens"] == 2400
        assert after["rollout_path"] == str(packed).removesuffix(".zst")
