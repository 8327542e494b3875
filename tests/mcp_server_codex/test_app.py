"""The server as a client meets it: lists, arguments, refusals, faults."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from jsonschema import Draft202012Validator
from mcp.client.session import ClientRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import ListRootsResult, Root
from pydantic import FileUrl

from mcp_server_codex.patience import patience_of
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import PNG, Json, Lab, call, connect

HELLO = events(thread_line(), *answer_lines("hello"))


def size(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False))


async def test_the_list_of_tools_is_small_and_complete(mode: str, lab: Lab) -> None:
    async with connect(mode, None, lab) as client:
        listed = (await client.list_tools()).tools
    tools = [t.model_dump(by_alias=True, mode="json", exclude_none=True) for t in listed]
    names = ["run", "resume", "wait", "answer", "steer", "stop", "apply", "sessions", "usage"]
    assert [tool["name"] for tool in tools] == [f"codex_{name}" for name in names]
    assert sum(size([t["name"], t["description"], t["inputSchema"]]) for t in tools) < 13_000
    assert size(tools) < 40_000
    for tool in tools:
        Draft202012Validator.check_schema(tool["inputSchema"])
        Draft202012Validator.check_schema(tool["outputSchema"])
        assert tool["inputSchema"]["type"] == tool["outputSchema"]["type"] == "object"
        hints = tool["annotations"]
        read_only = tool["name"] in ("codex_wait", "codex_sessions", "codex_usage")
        assert hints["readOnlyHint"] is read_only
        destructive = tool["name"] != "codex_steer"
        assert hints.get("destructiveHint") is (None if hints["readOnlyHint"] else destructive)
        assert hints["openWorldHint"] is (tool["name"] in ("codex_run", "codex_resume"))
        once = ("codex_run", "codex_resume", "codex_steer")
        assert hints["idempotentHint"] is (tool["name"] not in once)


async def test_with_everything_on_the_list_is_no_larger(mode: str, lab: Lab) -> None:
    async with connect(mode, None, lab, "--compat", "codex-mcp-server") as client:
        listed = (await client.list_tools()).tools
    tools = [t.model_dump(by_alias=True, mode="json", exclude_none=True) for t in listed]
    assert len(tools) == 11
    assert sum(size([t["name"], t["description"], t["inputSchema"]]) for t in tools) < 13_000
    assert size(tools) < 40_000


async def test_no_schema_has_what_makes_a_provider_refuse_the_whole_list(
    mode: str, lab: Lab
) -> None:
    """Gemini's API does: exclusiveMinimum, an enum without type, const and references."""
    async with connect(mode, None, lab, "--compat", "codex-mcp-server") as client:
        listed = (await client.list_tools()).tools
    for tool in listed:
        for schema in (tool.input_schema, cast("Json", tool.output_schema)):
            for node in nodes(schema):
                assert not node.keys() & {"exclusiveMinimum", "exclusiveMaximum", "const"}, node
                assert not isinstance(node.get("additionalProperties"), bool), node
                assert "enum" not in node or "type" in node, (tool.name, node)
        assert "$ref" not in json.dumps(tool.input_schema)
        for about in tool.input_schema["properties"].values():
            for form in about.get("anyOf", [about]):
                assert isinstance(form["type"], str), (tool.name, about)


def nodes(schema: Json) -> Iterator[Json]:
    """Yield a schema and all schemas inside it."""
    yield schema
    inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    for each in (*inner, *schema.get("anyOf", ()), schema.get("items")):
        if isinstance(each, dict):
            yield from nodes(cast("Json", each))


async def test_claude_code_is_told_how_to_find_and_to_show_a_tool(mode: str, lab: Lab) -> None:
    async with connect(mode, None, lab) as client:
        listed = (await client.list_tools()).tools
    meta = {tool.name: tool.meta or {} for tool in listed}
    assert all(len(each["anthropic/searchHint"]) > 20 for each in meta.values())
    large = [name for name, each in meta.items() if "anthropic/maxResultSizeChars" in each]
    assert large == ["codex_run", "codex_resume", "codex_wait"]


async def test_the_instructions_are_short(mode: str, lab: Lab) -> None:
    async with connect(mode, None, lab) as client:
        instructions = client.instructions or ""
    assert 500 < len(instructions) < 2000
    for word in ("codex_resume", "workspace-write", "read-only", "output_schema"):
        assert word in instructions


async def test_wrong_arguments_are_named_with_the_right_name(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = HELLO
    cases: list[tuple[Json, tuple[str, ...]]] = [
        ({"promt": "x"}, ("promt", "'prompt'")),
        ({"prompt": "x", "sandbx": "read-only"}, ("sandbx", "'sandbox'")),
        ({"prompt": "x", "sandbox": "Read-Only"}, ("sandbox", "read-only")),
        ({"prompt": 7}, ("prompt", "string")),
        ({"prompt": ""}, ("prompt",)),
        ({"prompt": "  \n\t"}, ("prompt", "blank")),
        ({"prompt": "x", "timeout_s": "60s"}, ("timeout_s", "number")),
        ({"prompt": "x", "timeout_s": "-5"}, ("timeout_s", "greater than 0")),
        ({"prompt": "x", "output_schema": "a list of names"}, ("output_schema", "an object")),
        ({"prompt": "x", "output_schema": "[" * 900_000}, ("output_schema", "an object")),
        ({"prompt": "x", "sandbx": None}, ("sandbx", "'sandbox'")),
        ({"prompt": None}, ("prompt", "string")),
        ({"prompt": "x", "timeout_s": 0}, ("timeout_s",)),
        ({"prompt": "x", "images": {"0": "a.png"}}, ("images", "list")),
        ({"prompt": "x", "cwd": "relative"}, ("cwd", "absolute")),
        ({"prompt": "x", "model": "-c evil=1"}, ("model",)),
        ({"prompt": "x", "reasoning_effort": 'low" x="'}, ("reasoning_effort",)),
        ({"prompt": "x", "cwd": "/no/such/folder"}, ("cwd", "/no/such/folder")),
        ({"prompt": "x", "images": "gone.png"}, ("images", "gone.png")),
        ({"prompt": "x", "add_dirs": ["gone"]}, ("add_dirs", "gone")),
        ({"prompt": "x", "cwd": "/tmp\x00"}, ("cwd",)),
        ({"prompt": "x", "config": {"model_verbosity": None}}, ("model_verbosity",)),
        ({"prompt": "x", "config": {'a"]b': 1}}, ("config",)),
        ({}, ("prompt",)),
    ]
    async with connect(mode, fake.build(), lab) as client:
        for arguments, words in cases:
            result = await call(client, "codex_run", **arguments)
            assert result["error"]["kind"] == "invalid_arguments", arguments
            assert result["run_id"] is None
            for word in words:
                assert word in result["text"], (arguments, result["text"])
        none = await client.call_tool("codex_run")
        assert none.is_error
    assert not fake.was_started


async def test_null_stands_for_an_absent_argument(mode: str, lab: Lab, fake: FakeCodex) -> None:
    fake.stdout = HELLO
    async with connect(mode, fake.build(), lab) as client:
        result = await call(client, "codex_run", prompt="x", model=None, images=None, config=None)
    assert result["status"] == "completed"


SENT_AS_STRINGS: Json = {
    "output_schema": '{"type": "object", "properties": {"n": {"const": "5"}}, "required": ["n"]}',
    "config": '{"model_verbosity": "low"}',
    "images": '["a.png"]',
    "add_dirs": "more",
    "web_search": "True",
    "skip_git_repo_check": "false",
    "timeout_s": "600",
    "repair_attempts": "2.0",
}


async def test_values_that_a_client_sends_as_strings_get_their_type_and_one_warning(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    (lab.project / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (lab.project / "more").mkdir()
    fake.stdout = events(thread_line(), *answer_lines('{"n": "5"}'))
    async with connect(mode, fake.build(), lab) as client:
        result = await call(client, "codex_run", prompt='{"a": 1}', **SENT_AS_STRINGS)
        ids = f'["{result["run_id"]}"]'
        waited = await client.call_tool("codex_wait", {"run_ids": ids, "wait_s": "0"})
        bare = await client.call_tool("codex_wait", {"run_ids": result["run_id"], "until": ""})
        typed = await call(client, "codex_run", prompt="x", repair_attempts=2.0)
        found = await client.call_tool("codex_sessions", {"limit": "3", "cwd": "", "query": None})
    assert result["status"] == "completed", result["text"]
    (note,) = (each for each in result["warnings"] if "Sent as a string" in each)
    assert {*note.rpartition(": ")[2].rstrip(".").split(", ")} == {*SENT_AS_STRINGS}
    assert note in cast("Any", waited.content[0]).text
    assert result["structured_output"] == {"n": "5"}
    assert not any("Sent as" in each for each in typed["warnings"])
    for each in (waited, bare):
        (run,) = cast("Json", each.structured_content)["runs"]
        assert run["run_id"] == result["run_id"]
    assert not found.is_error


async def test_the_old_tools_take_strings_too_and_keep_their_text(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = HELLO
    async with connect(mode, fake.build(), lab, "--compat", "codex-mcp-server") as client:
        arguments = {"prompt": "x", "config": '{"model_verbosity": "low"}', "base-instructions": ""}
        result = await client.call_tool("codex", arguments)
    (content,) = result.content
    assert cast("Any", content).text == "hello"
    assert cast("Json", result.structured_content)["content"] == "hello"
    assert 'model_verbosity="low"' in fake.seen()["argv"]


async def test_a_prompt_that_looks_like_json_stays_text(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = HELLO
    async with connect(mode, fake.build(), lab) as client:
        for prompt in ('{"a": 1}', "123", '["x"]', "null", "true"):
            result = await call(client, "codex_run", prompt=prompt)
            assert not any("Sent as" in each for each in result["warnings"])
            assert fake.seen()["stdin"] == prompt


async def test_arguments_left_out_as_null_or_as_an_empty_text_are_left_out_in_each_tool(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = HELLO
    async with connect(mode, fake.build(), lab, "--compat", "codex-mcp-server") as client:
        listed = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
        run = await call(client, "codex_run", prompt="x", isolation="copy")
        required: dict[str, Json] = {
            "codex_run": {"prompt": "x"},
            "codex_resume": {"prompt": "x", "thread_id": "01a20000-0000-7000-8000-000000000009"},
            "codex_wait": {"run_ids": [run["run_id"]]},
            "codex_answer": {
                "run_id": "run_0000000000000000",
                "question_id": "question_1",
                "decision": "decline",
            },
            "codex_steer": {"run_id": "run_0000000000000000", "prompt": "x"},
            "codex_stop": {"run_id": run["run_id"]},
            "codex_apply": {"run_id": run["run_id"], "action": "check"},
            "codex_sessions": {},
            "codex_usage": {},
            "codex": {"prompt": "x"},
            "codex-reply": {"prompt": "x", "threadId": "01a20000-0000-7000-8000-000000000009"},
        }
        assert required.keys() == listed.keys()
        for name, given in required.items():
            for nothing in (None, ""):
                others = dict.fromkeys(listed[name]["properties"].keys() - given.keys(), nothing)
                result = await client.call_tool(name, given | others)
                assert "invalid_arguments" not in str(result.content), (name, result)


async def test_a_thread_may_be_asked_for_with_the_other_arguments_at_their_defaults(
    mode: str, lab: Lab
) -> None:
    thread_id = "01a20000-0000-7000-8000-000000000009"
    defaults = {"limit": 20, "include_archived": False, "turns": 5, "query": None, "model": ""}
    async with connect(mode, None, lab) as client:
        found = await client.call_tool("codex_sessions", {"thread_id": thread_id, **defaults})
        listed = await client.call_tool("codex_sessions", defaults)
        both = await client.call_tool("codex_sessions", {"thread_id": thread_id, "limit": 21})
    assert cast("Json", found.structured_content)["error"]["kind"] == "thread_not_found"
    assert cast("Json", listed.structured_content)["error"] is None
    assert cast("Json", both.structured_content)["error"]["kind"] == "invalid_arguments"


async def test_a_prompt_over_the_limit_is_refused_as_such(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    async with connect(mode, fake.build(), lab) as client:
        result = await call(client, "codex_run", prompt="x" * 1_000_001)
    assert result["error"]["kind"] == "prompt_too_large"
    assert "1,000,001" in result["error"]["message"]
    assert not fake.was_started


async def test_what_the_operator_forbids_is_refused(mode: str, lab: Lab, fake: FakeCodex) -> None:
    outside = lab.root / "outside"
    outside.mkdir()
    (outside / "a.png").touch()
    (lab.project / "link").symlink_to(outside)
    cases: list[tuple[Json, str]] = [
        ({"sandbox": "danger-full-access"}, "--max-sandbox"),
        ({"timeout_s": 1e6}, "--max-timeout-s"),
        ({"config": {"sandbox_mode": "danger-full-access"}}, "--allow-config"),
        ({"config": {"model_providers.x.base_url": "http://evil"}}, "--allow-config"),
        ({"cwd": str(outside)}, "--root"),
        ({"cwd": str(lab.project / "link")}, "--root"),
        ({"cwd": f"{lab.project}/../outside"}, "--root"),
        ({"images": ["link/a.png"]}, "--root"),
        ({"add_dirs": ["../outside"]}, "--root"),
    ]
    async with connect(mode, fake.build(), lab, "--root", str(lab.project)) as client:
        for arguments, option in cases:
            result = await call(client, "codex_run", prompt="x", **arguments)
            assert result["error"]["kind"] == "not_allowed", arguments
            assert option in result["error"]["hint"]
    assert not fake.was_started


async def test_a_bad_output_schema_never_reaches_codex(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    cases: list[tuple[Json, str]] = [
        ({"type": "objekt"}, "$.type"),
        ({"properties": {"a": {"minimum": "1"}}}, "$.properties.a.minimum"),
        ({"$ref": "#/$defs/gone"}, "$.$ref"),
        ({"properties": {"a": {"$ref": "https://example.com/x.json"}}}, "$.properties.a.$ref"),
    ]
    async with connect(mode, fake.build(), lab) as client:
        for schema, path in cases:
            result = await call(client, "codex_run", prompt="x", output_schema=schema)
            assert result["error"]["kind"] == "invalid_output_schema", schema
            assert path in result["error"]["message"]
    assert not fake.was_started


async def test_the_schema_file_is_private_and_gone_afterwards(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    fake.stdout = events(thread_line(), *answer_lines('{"a": 1}'))
    place = lab.root / "tmp"
    place.mkdir()
    async with connect(mode, fake.build(), lab, env={"TMPDIR": str(place)}) as client:
        result = await call(client, "codex_run", prompt="x", output_schema=schema)
        seen = fake.seen()
        fake.stdout = b""
        fake.build()
        failed = await call(client, "codex_run", prompt="x", output_schema=schema)
    assert result["structured_output"] == {"a": 1}
    assert seen["schema"] == schema
    scratch = lab.state / "scratch"
    assert Path(seen["schema_file"]).is_relative_to(scratch)
    assert failed["error"]["kind"] == "codex_crashed"
    assert [*place.iterdir(), *scratch.iterdir()] == []


async def test_the_command_line_is_the_portable_one(mode: str, lab: Lab, fake: FakeCodex) -> None:
    fake.stdout = HELLO
    (lab.project / "-i.png").write_bytes(PNG)
    async with connect(mode, fake.build(), lab) as client:
        await call(
            client,
            "codex_run",
            prompt="-c x",
            sandbox="workspace-write",
            model="some-model",
            images=["-i.png"],
            skip_git_repo_check=True,
            config={"model_verbosity": 'low" #'},
        )
    seen = fake.seen()
    assert seen["argv"][1:] == [
        *("exec", "--json", "-s", "workspace-write", "-C", str(lab.project)),
        *("-m", "some-model", "--ignore-rules", "-c", 'model_verbosity="low\\" #"'),
        *("-c", 'default_permissions=":workspace"'),
        *("--skip-git-repo-check", f"--image={lab.project}/-i.png", "-"),
    ]
    assert seen["stdin"] == "-c x"
    assert seen["cwd"] == str(lab.project)


async def test_without_codex_the_error_says_how_to_get_it(mode: str, lab: Lab) -> None:
    async with connect(mode, lab.root / "gone", lab) as client:
        result = await call(client, "codex_run", prompt="x")
    assert result["error"]["kind"] == "codex_not_found"
    assert "npm install" in result["error"]["hint"]


async def test_an_unknown_tool_is_a_protocol_error(mode: str, lab: Lab) -> None:
    async with connect(mode, None, lab) as client:
        with pytest.raises(MCPError, match="codex_walk"):
            await client.call_tool("codex_walk", {})
        assert (await client.list_tools()).tools


async def test_an_internal_fault_stays_inside_and_the_server_goes_on(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = HELLO
    thread_id = "01a20000-0000-7000-8000-000000000001"
    rollout = lab.home / "sessions" / f"rollout-2026-01-01T00-00-00-{thread_id}.jsonl"
    rollout.parent.mkdir()
    meta = {"id": thread_id, "cwd": str(lab.project)}
    rollout.write_text(json.dumps({"type": "session_meta", "payload": meta}) + "\n")
    # Files where the folders for locks have to be: a fault that nobody has foreseen.
    lab.state.mkdir()
    (lab.home / "mcp-server-codex").write_text("")
    (lab.state / "thread-locks").write_text("")
    arguments = {"prompt": "secret words", "thread_id": thread_id}
    async with connect(mode, fake.build(), lab) as client:
        broken = await call(client, "codex_resume", **arguments)
        (lab.home / "mcp-server-codex").unlink()
        mended = await call(client, "codex_resume", **arguments)
    assert broken["error"]["kind"] == "internal"
    assert str(lab.state) not in broken["text"]
    assert "Error" not in broken["error"]["message"]
    assert mended["status"] == "completed"
    logged = lab.log.read_text()
    assert "FileExistsError" in logged
    assert "secret words" not in logged


async def test_the_folder_is_the_client_s_first_root(mode: str, lab: Lab, fake: FakeCodex) -> None:
    fake.stdout = HELLO
    root = lab.root / "the root é"
    root.mkdir()

    async def roots(_: ClientRequestContext) -> ListRootsResult:
        return ListRootsResult(roots=[Root(uri=FileUrl(root.as_uri()))])

    async with connect(mode, fake.build(), lab, list_roots_callback=roots) as client:
        mine = await call(client, "codex_run", prompt="x")
        named = await call(client, "codex_run", prompt="x", cwd=str(lab.project))
    assert mine["cwd"] == str(root)
    assert named["cwd"] == str(lab.project)


async def test_without_roots_the_folder_is_the_project_s_or_the_server_s_own(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = HELLO
    other = lab.root / "other"
    other.mkdir()
    async with connect(mode, fake.build(), lab, env={"CLAUDE_PROJECT_DIR": str(other)}) as client:
        told = await call(client, "codex_run", prompt="x")
    async with connect(mode, fake.build(), lab) as client:
        own = await call(client, "codex_run", prompt="x")
    assert told["cwd"] == str(other)
    assert own["cwd"] == str(lab.project)


async def test_progress_starts_at_once_changes_at_most_twice_a_second_and_never_stops(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.body = """
def item(n, kind="started", **fields):
    item = {"id": f"item_{n}", "type": "command_execution", "command": f"step {n}",
            "aggregated_output": "", "exit_code": None, "status": "in_progress", **fields}
    print(json.dumps({"type": f"item.{kind}", "item": item}), flush=True)
print(json.dumps({"type": "thread.started", "thread_id": "T" * 36}), flush=True)
began = time.monotonic()
for n in range(300):
    item(n)
    item(n, "completed", exit_code=0, status="completed")
    time.sleep(0.01)
seen["changing_s"] = time.monotonic() - began
json.dump(seen, open(SEEN, "w"))
item(300, command="/bin/bash -lc 'pytest -q'")
time.sleep(10.5)
""".replace("SEEN", repr(str(fake.folder / "seen.json")))
    fake.stdout = events(*answer_lines("done"))
    heard: list[tuple[float, str]] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message or ""))

    async with connect(mode, fake.build(), lab) as client:
        answer = await client.call_tool("codex_run", {"prompt": "x"}, progress_callback=tell)
    numbers = [number for number, _ in heard]
    messages = [message for _, message in heard]
    assert numbers == sorted(set(numbers))
    # Some seconds of changes, then 10 s of silence: some of the first, one or two of the second.
    assert 3 <= len(heard) <= 2 * fake.seen()["changing_s"] + 8
    assert any("step" in message for message in messages)
    quiet = [message for message in messages if "running pytest -q" in message]
    assert len(quiet) >= 2
    assert sum("T" * 36 in message for message in messages) == 1
    assert all(len(message) <= 200 for message in messages)
    assert cast("Json", answer.structured_content)["command_count"] == 301


async def test_the_environment_for_python_is_not_handed_on(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    fake.stdout = HELLO
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": "", "OTHER": "kept"}
    async with connect(mode, fake.build(), lab, env=env) as client:
        await call(client, "codex_run", prompt="x")
    seen = fake.seen()["env"]
    assert "PYTHONSAFEPATH" not in seen
    assert "PYTHONPATH" not in seen
    assert seen["OTHER"] == "kept"


async def test_the_node_script_on_path_is_passed_by(mode: str, lab: Lab, tmp_path: Path) -> None:
    """npm's layout in miniature: the native binary is run, node is not needed."""
    package = tmp_path / "lib" / "node_modules" / "@openai" / "codex"
    machine = "aarch64" if os.uname().machine in ("arm64", "aarch64") else "x86_64"
    triple = f"{machine}-unknown-linux-musl"
    native = FakeCodex(package / "vendor" / triple / "codex", version="0.60.1", stdout=HELLO)
    native.build()
    (package / "bin").mkdir()
    (package / "bin" / "codex.js").write_text("#!/bin/false\n")
    (package / "bin" / "codex.js").chmod(0o755)
    path = tmp_path / "bin"
    path.mkdir()
    (path / "codex").symlink_to(package / "bin" / "codex.js")
    (package / "vendor" / triple / "path").mkdir()
    async with connect(
        mode, None, lab, env={"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    ) as client:
        result: Any = await call(client, "codex_run", prompt="x")
    assert result["status"] == "completed"
    assert result["codex_version"] == "0.60.1"
    assert native.seen()["env"]["PATH"].startswith(str(package / "vendor" / triple / "path"))


@pytest.mark.parametrize(
    ("client", "with_progress", "without"),
    [
        ("claude-code", float("inf"), float("inf")),
        ("gemini-cli-mcp-client", 1800, 45),
        ("qwen-cli-mcp-client-codex", 1800, 45),
        ("opencode", 1800, 45),
        ("copilot-cli", 1800, 45),
        ("codex-mcp-client", 45, 45),
        ("continue-cli-client", 45, 45),
        ("mcp", 45, 45),
        ("opencode-", 45, 45),
        ("", 45, 45),
    ],
)
def test_a_call_waits_less_than_the_client_was_seen_to_wait(
    client: str, with_progress: float, without: float
) -> None:
    """See docs/clients.md for what was measured."""
    assert patience_of(client, has_progress=True) == with_progress
    assert patience_of(client, has_progress=False) == without
