"""Each of the two channels suffices: half of the clients show their model only one of them.

A row of TOLD is what a caller must be able to read from a result of a tool, in each channel alone.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any, cast

import pytest
from mcp import Client
from mcp_types import CallToolResult

from mcp_server_codex.calls import TOOLS
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import Json, Lab, connect
from support.rollout_lines import THREAD

CHANNELS = ("text", "json")

BODY = f"""
thread = {{"type": "thread.started", "thread_id": {THREAD!r}}}
def say(*lines):
    for line in lines:
        print(json.dumps(line), flush=True)
def message(text):
    say({{"type": "item.completed",
         "item": {{"id": "item_0", "type": "agent_message", "text": text}}}})
prompt = seen["stdin"]
if "break" in prompt:
    say(thread, {{"type": "turn.started"}})
    message("I looked at the lexer.")
    say({{"type": "turn.failed", "error": {{"message": "the model has left"}}}})
    sys.exit(1)
if "hang" in prompt:
    say(thread, {{"type": "turn.started"}})
    message("Still at the lexer.")
    time.sleep(120)
if "write" in prompt:
    open("made.py", "w").write("x = 1\\n")
"""


@dataclass(frozen=True)
class Told:
    """What a result must tell, whichever channel is shown."""

    tool: str
    arguments: Json
    words: tuple[str, ...]
    is_error: bool = False
    is_new: bool = False
    """True if the run of this result is the one that later rows mean by @RUN@."""


GONE = "01a20000-0000-7000-8000-00000000dead"
WRITE: Json = {"prompt": "write", "sandbox": "workspace-write", "isolation": "copy"}
RESUME = (THREAD, "codex_resume")

TOLD: dict[str, Told] = {
    "run: ended": Told("codex_run", {"prompt": "x"}, ('{"n": 7}', *RESUME)),
    "run: data": Told(
        "codex_run",
        {"prompt": "x", "output_schema": {"type": "object", "properties": {"n": {}}}},
        ('"n":7', *RESUME),
    ),
    "run: failed": Told(
        "codex_run",
        {"prompt": "break"},
        ("turn_failed", "the model has left", "I looked at the lexer.", *RESUME, "run_"),
        is_error=True,
    ),
    "run: refused": Told(
        "codex_run",
        {"prompt": "x", "sandbox": "danger-full-access"},
        ("not_allowed", "danger-full-access", "--max-sandbox"),
        is_error=True,
    ),
    "run: misspelt": Told(
        "codex_run", {"promt": "x"}, ("invalid_arguments", "promt", "'prompt'"), is_error=True
    ),
    "run: planned": Told("codex_run", {"prompt": "x", "dry_run": True}, ("exec", "dry_run")),
    "run: in the background": Told(
        "codex_run",
        {"prompt": "hang", "wait_s": 0},
        ("@RUN@", "codex_wait", "codex_stop"),
        is_new=True,
    ),
    "wait: still running": Told(
        "codex_wait", {"run_ids": ["@RUN@"], "wait_s": 1}, ("@RUN@", "running", "codex_wait")
    ),
    "steer: impossible": Told(
        "codex_steer",
        {"run_id": "@RUN@", "prompt": "more"},
        ("codex_unsupported", "engine exec", "codex_wait"),
        is_error=True,
    ),
    "answer: nothing was asked": Told(
        "codex_answer",
        {"run_id": "@RUN@", "question_id": "question_1", "decision": "accept"},
        ("invalid_arguments", "question_1"),
        is_error=True,
    ),
    "stop: stopped": Told("codex_stop", {"run_id": "@RUN@"}, ("@RUN@", "cancelled", *RESUME)),
    "wait: ended": Told(
        "codex_wait", {"run_ids": ["@RUN@"]}, ("@RUN@", "cancelled", "the lexer.", *RESUME)
    ),
    "wait: unknown": Told(
        "codex_wait",
        {"run_ids": ["run_0000000000000000"]},
        ("unknown_run", "run_0000000000000000"),
        is_error=True,
    ),
    "stop: unknown": Told(
        "codex_stop",
        {"run_id": "run_0000000000000000"},
        ("unknown_run", "run_0000000000000000"),
        is_error=True,
    ),
    "resume: ended": Told(
        "codex_resume", {"prompt": "x", "thread_id": THREAD}, ('{"n": 7}', *RESUME)
    ),
    "resume: unknown": Told(
        "codex_resume",
        {"prompt": "x", "thread_id": GONE},
        ("thread_not_found", GONE, "codex_sessions"),
        is_error=True,
    ),
    "run: in a copy": Told(
        "codex_run", WRITE, ("made.py", "add", "@RUN@", "codex_apply", *RESUME), is_new=True
    ),
    "apply: checked": Told(
        "codex_apply",
        {"run_id": "@RUN@", "action": "check"},
        ("write", "made.py", "@RUN@", "codex_apply", "apply"),
    ),
    "apply: applied": Told(
        "codex_apply",
        {"run_id": "@RUN@", "action": "apply"},
        ("made.py", "applied", "not staged", "discard"),
    ),
    "apply: discarded": Told(
        "codex_apply", {"run_id": "@RUN@", "action": "discard"}, ("discard", "copy is deleted")
    ),
    "apply: unknown": Told(
        "codex_apply",
        {"run_id": "run_0000000000000000", "action": "check"},
        ("unknown_run",),
        is_error=True,
    ),
    "sessions: list": Told("codex_sessions", {}, (THREAD, "total", "last_active_at")),
    "sessions: one": Told("codex_sessions", {"thread_id": THREAD}, (THREAD, "what was asked")),
    "sessions: unknown": Told(
        "codex_sessions", {"thread_id": GONE}, ("thread_not_found", GONE), is_error=True
    ),
    "usage: report": Told("codex_usage", {"timezone": "UTC"}, ("total_tokens", "cost_usd")),
    "usage: refused": Told(
        "codex_usage", {"since": "soon"}, ("invalid_arguments", "soon", "7d"), is_error=True
    ),
}


def shown(result: CallToolResult, channel: str) -> str:
    """Return what a model is shown whose client hides the other channel."""
    if channel == "json":
        data = cast("Json", result.structured_content)
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace('\\"', '"')
    texts = [cast("Any", each).text for each in result.content if each.type == "text"]
    return "\n".join(texts)


def test_each_tool_has_its_rows() -> None:
    assert {row.tool for row in TOLD.values()} == {tool.name for tool in TOOLS}


def lay_thread(lab: Lab) -> None:
    """Lay the rollout of the thread that the fake Codex works on, and make a first commit."""
    meta = {"id": THREAD, "cwd": str(lab.project), "timestamp": "2026-01-01T00:00:00.000Z"}
    asked = {"type": "user_message", "message": "what was asked"}
    rollout = lab.home / "sessions" / f"rollout-2026-01-01T00-00-00-{THREAD}.jsonl"
    rollout.parent.mkdir()
    commit = ["git", "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(commit, cwd=lab.project, env=GIT, check=True)
    lines = (("session_meta", meta), ("event_msg", asked))
    stamp = "2026-01-01T00:00:00.000Z"
    rollout.write_text(
        "".join(
            json.dumps({"timestamp": stamp, "type": kind, "payload": payload}) + "\n"
            for kind, payload in lines
        )
    )


async def call_all(client: Client) -> dict[str, tuple[CallToolResult, str]]:
    """Call all rows in order; return each result, with the run that @RUN@ means."""
    found: dict[str, tuple[CallToolResult, str]] = {}
    run_id = ""
    for name, row in TOLD.items():
        arguments = json.loads(json.dumps(row.arguments).replace("@RUN@", run_id))
        result = await client.call_tool(row.tool, arguments)
        if row.is_new:
            run_id = cast("Json", result.structured_content)["run_id"]
        found[name] = (result, run_id)
    return found


async def test_a_model_that_sees_one_channel_knows_what_to_do_next(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    lay_thread(lab)
    fake.body = BODY
    fake.stdout = events(thread_line(THREAD), *answer_lines('{"n": 7}'))
    async with connect(mode, fake.build(), lab) as client:
        found = await call_all(client)
    missing: list[tuple[str, str, str]] = []
    for name, (result, run_id) in found.items():
        assert result.is_error is TOLD[name].is_error, (name, result)
        for channel in CHANNELS:
            text = shown(result, channel)
            wanted = [word.replace("@RUN@", run_id) for word in TOLD[name].words]
            missing += [(name, channel, word) for word in wanted if word not in text]
            # Nothing is sent at length twice.
            assert text.count("the model has left") <= 1, (name, channel)
            assert text.count("I looked at the lexer.") <= 1, (name, channel)
    assert missing == []


GIT = {
    "PATH": "/usr/bin:/bin:/usr/local/bin",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.com",
}


@pytest.mark.parametrize("channel", CHANNELS)
async def test_a_long_answer_with_a_schema_is_sent_once_in_each_channel(
    channel: str, lab: Lab, fake: FakeCodex
) -> None:
    long = "word " * 400
    fake.stdout = events(thread_line(), *answer_lines(json.dumps({"text": long})))
    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    async with connect("auto", fake.build(), lab) as client:
        result = await client.call_tool("codex_run", {"prompt": "x", "output_schema": schema})
    assert shown(result, channel).count(long) == 1
