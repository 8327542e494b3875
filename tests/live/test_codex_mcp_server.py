"""The tools `codex` and `codex-reply`, side by side with the real `codex mcp-server` of 0.60.1."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO, cast

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from mcp_server_codex.cli.scripted_model import Shell, api_error, do, say
from support.codex_versions import PINNED, real_codex
from support.fake_codex import FakeCodex
from support.lab import BY_EXEC, Json, Lab, connect, environment, open_lab

COMPAT = ("--compat", "codex-mcp-server")


@asynccontextmanager
async def connect_to_the_real_one(lab: Lab) -> AsyncGenerator[Client]:
    """Start `codex mcp-server` of the oldest Codex as its users did."""
    server = StdioServerParameters(
        command=str(real_codex(PINNED[0])),
        args=["mcp-server"],
        cwd=lab.project,
        env=environment(lab),
    )
    with lab.log.open("ab") as log:
        transport = stdio_client(server, errlog=cast("TextIO", log))
        async with Client(transport, mode="legacy") as connected:
            yield connected


async def ask(client: Client, tool: str, **arguments: Any) -> tuple[str, bool, Json | None]:
    """Return the text that *tool* answers, whether it is an error, and the structured content."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    result = await client.call_tool(tool, named)
    (content,) = result.content
    data = cast("Json | None", result.structured_content)
    return cast("Any", content).text, bool(result.is_error), data


def seen(lab: Lab, prompt: str) -> Json:
    """Return the one request that the model got for *prompt*."""
    (request,) = [each for each in lab.model.requests if each.prompt == prompt]
    return request.body


async def tools_of(client: Client) -> dict[str, Json]:
    listed = (await client.list_tools()).tools
    return {
        tool.name: tool.model_dump(by_alias=True, mode="json", exclude_none=True) for tool in listed
    }


async def test_the_old_tools_are_offered_only_when_asked_for(mode: str, lab: Lab) -> None:
    async with connect(mode, None, lab) as client:
        assert not {"codex", "codex-reply"} & (await tools_of(client)).keys()
    async with connect(mode, None, lab, *COMPAT) as client:
        tools = await tools_of(client)
    assert [*tools][-2:] == ["codex", "codex-reply"]
    assert len(tools) == 11


async def test_they_take_all_that_the_real_one_takes(mode: str) -> None:
    with open_lab(PINNED[0]) as lab:
        async with connect_to_the_real_one(lab) as old:
            theirs = await tools_of(old)
        async with connect(mode, None, lab, *COMPAT) as client:
            ours = await tools_of(client)
    assert theirs.keys() == {"codex", "codex-reply"}
    for name, tool in theirs.items():
        for argument, schema in tool["inputSchema"]["properties"].items():
            mine = ours[name]["inputSchema"]["properties"][argument]
            assert mine.get("enum") == schema.get("enum"), argument
            assert mine.get("type", "string") == schema["type"], argument
        assert ours[name]["outputSchema"]["required"] == ["threadId", "content"]


async def test_they_answer_as_the_real_one_answers(mode: str) -> None:
    with open_lab(PINNED[0]) as lab:
        first = lab.script("What is 6 times 7?", say("42"))
        second = lab.script("And plus one?", say("43"))
        answers: list[tuple[str, bool]] = []
        asked: list[Json] = []
        async with connect_to_the_real_one(lab) as old:
            text, failed, _ = await ask(old, "codex", prompt=first, sandbox="read-only")
            answers.append((text, failed))
            asked.append(seen(lab, first))
        lab.model.requests.clear()
        async with connect(mode, real_codex(PINNED[0]), lab, *BY_EXEC, *COMPAT) as client:
            text, failed, data = await ask(
                client, "codex", prompt=first, sandbox="read-only", approval_policy="never"
            )
            answers.append((text, failed))
            asked.append(seen(lab, first))
            assert data is not None
            assert data["content"] == "42"
            reply, failed, again = await ask(
                client, "codex-reply", prompt=second, conversationId=data["threadId"]
            )
    assert answers == [("42", False)] * 2
    assert (reply, failed, again) == ("43", False, data | {"content": "43"})
    # The model is told the same, by either way: only the cache's key names the thread.
    for body in asked:
        body.pop("prompt_cache_key", None)
    assert asked[0]["instructions"] == asked[1]["instructions"]
    assert asked[0]["tools"] == asked[1]["tools"]


async def test_a_thread_goes_on_by_either_name_of_its_id(mode: str, lab: Lab, codex: Path) -> None:
    first, second, third = (lab.script(f"turn {n}", say(f"answer {n}")) for n in range(3))
    async with connect(mode, codex, lab, *COMPAT) as client:
        _, _, data = await ask(client, "codex", prompt=first)
        assert data is not None
        thread_id = data["threadId"]
        by_new = await ask(client, "codex-reply", prompt=second, threadId=thread_id)
    async with connect(mode, codex, lab, *COMPAT) as client:  # The real one forgot them here.
        by_old = await ask(client, "codex-reply", prompt=third, conversationId=thread_id)
    assert by_new == ("answer 1", False, {"threadId": thread_id, "content": "answer 1"})
    assert by_old == ("answer 2", False, {"threadId": thread_id, "content": "answer 2"})


async def test_instructions_reach_the_model(mode: str, lab: Lab, codex: Path) -> None:
    prompt = lab.script("go", say("gone"))
    async with connect(mode, codex, lab, *COMPAT) as client:
        await ask(
            client,
            "codex",
            prompt=prompt,
            base_instructions="BASE: answer in verse.\n'''\"quoted\"",
            developer_instructions='DEVELOPER: "be" brief\n',
            compact_prompt="COMPACT: in three lines",
        )
    body = str(seen(lab, prompt))
    assert "BASE: answer in verse." in body
    assert "DEVELOPER:" in body
    assert "You are Codex" not in str(seen(lab, prompt).get("instructions"))


async def test_a_relative_folder_counts_from_the_servers_own(
    mode: str, lab: Lab, codex: Path
) -> None:
    (lab.project / "part").mkdir()
    prompt = lab.script("where", do(Shell("pwd > where.txt")), say("done"))
    async with connect(mode, codex, lab, *COMPAT) as client:
        _, failed, _ = await ask(
            client, "codex", prompt=prompt, cwd="part", sandbox="workspace-write"
        )
    assert not failed
    assert (lab.project / "part" / "where.txt").read_text().strip() == str(lab.project / "part")


async def test_failures_are_errors_with_their_thread(mode: str, lab: Lab, codex: Path) -> None:
    prompt = lab.script("fail", api_error(400, "No such model", "invalid_request_error"))
    async with connect(mode, codex, lab, *COMPAT) as client:
        text, failed, data = await ask(client, "codex", prompt=prompt)
    assert failed
    assert "No such model" in text
    assert data is not None
    assert data["threadId"] in text
    assert data["content"] == text


@pytest.mark.parametrize(
    ("tool", "arguments", "word"),
    [
        ("codex", {}, "prompt"),
        ("codex", {"prompt": "x", "sandbox": "bad"}, "read-only"),
        ("codex", {"prompt": "x", "sandbox": "danger-full-access"}, "not_allowed"),
        ("codex", {"prompt": "x", "approval_policy": "sometimes"}, "approval-policy"),
        ("codex", {"prompt": "x", "approval_polcy": "never"}, "'approval-policy'"),
        ("codex", {"prompt": "x", "config": {"sandbox_mode": "x"}}, "not_allowed"),
        ("codex", {"prompt": "x", "cwd": "no/such/folder"}, "cwd"),
        ("codex", {"prompt": "x", "base_instructions": "x" * 60_001}, "base-instructions"),
        ("codex", {"prompt": "x", "compact_prompt": "\u3042" * 60_000}, "120,000 bytes"),
        ("codex-reply", {"prompt": "x"}, "threadId"),
        ("codex-reply", {"prompt": "x", "threadId": "nope"}, "UUID"),
        ("codex-reply", {"prompt": "x", "conversationId": "0" * 32}, "thread_not_found"),
    ],
)
async def test_what_cannot_be_is_refused_before_codex_starts(
    mode: str, lab: Lab, fake: FakeCodex, tool: str, arguments: Json, word: str
) -> None:
    async with connect(mode, fake.build(), lab, *COMPAT) as client:
        text, failed, data = await ask(client, tool, **arguments)
    assert failed
    assert word in text
    assert data is None
    assert not fake.was_started


async def test_the_limits_hold_for_the_old_names_too(mode: str, lab: Lab, fake: FakeCodex) -> None:
    inside = lab.project / "inside"
    inside.mkdir()
    options = (*COMPAT, "--root", str(inside), "--max-sandbox", "read-only")
    async with connect(mode, fake.build(), lab, *options) as client:
        for arguments in ({"cwd": str(lab.root)}, {"cwd": ".."}, {"sandbox": "workspace-write"}):
            text, failed, _ = await ask(
                client, "codex", **({"prompt": "x", "cwd": str(inside)} | arguments)
            )
            assert failed
            assert text.startswith("not_allowed"), text
    assert not fake.was_started
