"""Every recorded stream, played by a fake Codex through the whole server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codex_tools.codex.events import FileChangeItem, ItemCompletedEvent, parse_event
from support.fake_codex import FakeCodex
from support.lab import Lab, call, connect

RECORDED = Path(__file__).parent / "data" / "exec"
RECORDED_VERSIONS = sorted(folder.name for folder in RECORDED.iterdir())

# What a recording must come out as: the error's kind, or None for success.
KINDS: dict[str, str | None] = {
    "bad_flag": "codex_unsupported",
    "cmd": None,
    "cut_once": None,
    "empty_items": "no_answer",
    "empty_prompt": "not_started",
    "failed_ctx": "context_window_exceeded",
    "hello": None,
    "http_400": "invalid_request",
    "http_401": "not_authenticated",
    "http_429_always": "rate_limited",
    "http_500_once": None,
    "mcp": None,
    "not_git": "untrusted_directory",
    "patch": None,
    "plan": None,
    "resume_bad_id": "thread_not_found",
    "schema_nonconform": None,
    "sigterm_midcmd": "codex_crashed",
    "two_messages": None,
    "usage_limit": "usage_limit",
    "web_search": None,
}
# 0.60.1 begins a new thread where it does not find the one to resume.
OTHERWISE = {("0.60.1", "resume_bad_id"): None, ("0.98.0", "resume_bad_id"): None}

PLAY = """
name = seen["stdin"]
plan["stdout"] = os.path.join(plan["stdout"], name, "stdout.jsonl")
plan["stderr"] = os.path.join(plan["stderr"], name, "stderr.txt")
meta = json.load(open(os.path.join(os.path.dirname(plan["stdout"]), "meta.json")))
plan["exit_code"] = meta["exit_code"] if meta["exit_code"] >= 0 else 1
"""


@pytest.mark.parametrize("recorded", RECORDED_VERSIONS)
async def test_every_recorded_stream_comes_out_right(
    recorded: str, mode: str, lab: Lab, fake: FakeCodex
) -> None:
    folder = RECORDED / recorded
    scenarios = sorted(scenario.name for scenario in folder.iterdir())
    fake.version, fake.body, fake.stdout, fake.stderr = recorded, PLAY, folder, folder
    kinds: dict[str, str | None] = {}
    async with connect(mode, fake.build(), lab) as client:
        for scenario in scenarios:
            result = await call(client, "codex_run", prompt=scenario)
            kinds[scenario] = result["error"] and result["error"]["kind"]
            lines = (folder / scenario / "stdout.jsonl").read_text().splitlines()
            messages = [
                event["item"]["text"]
                for event in map(json.loads, lines)
                if event.get("item", {}).get("type") == "agent_message"
            ]
            assert result["final_response"] == (messages[-1] if messages else None), scenario
            assert result["codex_version"] == recorded
            if scenario == "patch":
                assert {f["path"]: f["kind"] for f in result["files_changed"]} == _net(lines)
            if scenario == "cmd":
                codes = [c["exit_code"] for c in result["commands"]]
                assert result["command_count"] == len(codes) > 0
                assert 3 in codes or recorded == "0.98.0"
            if scenario == "mcp":
                calls = [(c["server"], c["tool"], c["status"]) for c in result["tool_calls"]]
                assert calls == [("lab", "echo", "completed"), ("lab", "fail", "failed")]
            if scenario == "web_search":
                assert result["searches"][0] == "weather oslo"
            if scenario == "plan" and recorded != "0.169.0":
                assert [(s["text"], s["completed"]) for s in result["plan"]] == [
                    ("A", True),
                    ("B", False),
                ]
    expected = {s: OTHERWISE.get((recorded, s), KINDS[s]) for s in scenarios}
    assert kinds == expected


def _net(lines: list[str]) -> dict[str, str]:
    """Return the net changes by another way than the product's: play them on a set of paths."""
    first: dict[str, bool] = {}
    now: dict[str, bool] = {}
    for line in lines:
        event = parse_event(line.encode())
        if isinstance(event, ItemCompletedEvent) and isinstance(event.item, FileChangeItem):
            for change in event.item.changes:
                first.setdefault(change.path, change.kind != "add")
                now[change.path] = change.kind != "delete"
    kinds = {(False, True): "add", (True, True): "update", (True, False): "delete"}
    return {path: kinds[was, now[path]] for path, was in first.items() if was or now[path]}
