"""codex_run over the real Codex, both protocol eras."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from mcp_server_codex.cli.scripted_model import (
    Call,
    Patch,
    Say,
    Search,
    Shell,
    Think,
    Usage,
    do,
    say,
)
from support.codex_versions import number
from support.lab import Json, Lab, call, connect

VERDICT: Json = {
    "type": "object",
    "properties": {
        "verdict": {"type": "string", "enum": ["ship", "fix"]},
        "count": {"type": "integer"},
    },
    "required": ["verdict", "count"],
    "additionalProperties": False,
}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.mark.usefixtures("each_engine")
async def test_a_task_comes_back_as_one_truthful_result(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    (lab.project / "old.txt").write_text("before\n")
    prompt = lab.script(
        "work",
        do(Think("**Looking around**"), Shell("echo looking; exit 0")),
        do(Shell("echo no >&2; exit 3")),
        do(Patch("*** Add File: new.txt\n+hello")),
        do(Patch("*** Update File: old.txt\n@@\n-before\n+after")),
        say("All done.", Usage(2000, 1500, 50, 20)),
    )
    told: list[str] = []
    steps: list[float] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)
        told.append(message or "")

    async with connect(mode, codex, lab) as client:
        answer = await client.call_tool(
            "codex_run",
            {"prompt": prompt, "sandbox": "workspace-write", "reasoning_effort": "low"},
            progress_callback=tell,
        )
    result = cast("Json", answer.structured_content)
    assert answer.is_error is False
    (content,) = answer.content
    text, listed = cast("Any", content).text, result["files_changed"]
    files = ", ".join(f"{file['path']} ({file['kind']})" for file in listed)
    assert text.startswith("All done.\n\n---\n")
    assert text.splitlines()[3:] == [
        f"thread_id: {result['thread_id']}",
        f"files changed (2): {files}",
        f"diff: codex://runs/{result['run_id']}/patch",
        f"Next: {result['next']}",
    ]
    assert result["status"] == "completed"
    assert result["final_response"] == "All done."
    assert result["error"] is None
    assert result["attempts"] == 1
    assert result["sandbox"] == "workspace-write"
    assert result["cwd"] == str(lab.project)
    assert result["reasoning_effort"] == "low"
    assert result["codex_version"] == version
    assert result["model"].startswith("gpt-5")
    changes = {Path(file["path"]).name: file["kind"] for file in result["files_changed"]}
    assert changes == {"new.txt": "add", "old.txt": "update"}
    assert (lab.project / "new.txt").read_text() == "hello\n"
    assert (lab.project / "old.txt").read_text() == "after\n"
    if number(version) != (0, 98, 0):  # 0.98 leaves quick commands out of its stream.
        ran = [(c["command"], c["exit_code"], c["status"]) for c in result["commands"]]
        assert ran == [
            ("echo looking; exit 0", 0, "completed"),
            ("echo no >&2; exit 3", 3, "failed"),
        ]
    requests = lab.model.requests
    assert result["usage"]["input_tokens"] == 1200 * (len(requests) - 1) + 2000
    assert result["usage"]["output_tokens"] == 34 * (len(requests) - 1) + 50
    assert result["usage"]["total_tokens"] == sum(
        result["usage"][k] for k in ("input_tokens", "output_tokens")
    )
    assert requests[0].body["reasoning"]["effort"] == "low"
    assert result["thread_id"] in result["next"]
    assert steps == sorted(set(steps))
    assert result["run_id"] in told[0]
    if result["duration_s"] > 2:
        assert any(result["thread_id"] in message for message in told)
    assert max(map(len, told)) <= 200


async def test_a_read_only_sandbox_keeps_the_folder_as_it_is(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script(
        "write",
        do(Shell(f"touch {lab.project}/made.txt && echo made it")),
        do(Patch("*** Add File: patched.txt\n+no")),
        say("I could not write."),
    )
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert result["status"] == "completed"
    assert result["sandbox"] == "read-only"
    assert result["files_changed"] == []
    assert sorted(p.name for p in lab.project.iterdir() if p.name != ".git") == []


@pytest.mark.usefixtures("each_engine")
async def test_structured_output_is_parsed_and_validated(codex: Path, mode: str, lab: Lab) -> None:
    lab.script("good", say(json.dumps({"verdict": "ship", "count": 2})))
    lab.script("bad", say(json.dumps({"verdict": "perhaps", "count": "two"})))
    lab.script("prose", say("It looks fine to me."))
    async with connect(mode, codex, lab) as client:
        good = await call(client, "codex_run", prompt="good", output_schema=VERDICT)
        bad = await call(client, "codex_run", prompt="bad", output_schema=VERDICT)
        prose = await call(client, "codex_run", prompt="prose", output_schema=VERDICT)
        sent_as_text = await client.call_tool(
            "codex_run", {"prompt": "good", "output_schema": json.dumps(VERDICT)}
        )
    assert good["structured_output"] == {"verdict": "ship", "count": 2}
    first, second = (cast("Any", block).text for block in sent_as_text.content)
    assert json.loads(first) == {"verdict": "ship", "count": 2}
    data = cast("Json", sent_as_text.structured_content)
    assert data["structured_output"] == {"verdict": "ship", "count": 2}
    (note,) = (each for each in data["warnings"] if "output_schema" in each)
    for part in (f"thread_id: {data['thread_id']}", f"warning: {note}", f"Next: {data['next']}"):
        assert part in second.splitlines()
    assert lab.model.requests[0].body["text"]["format"]["schema"] == VERDICT
    for result in (bad, prose):
        assert result["status"] == "failed"
        assert result["structured_output"] is None
        assert result["error"]["kind"] == "output_mismatch"
        assert result["thread_id"] in result["text"]
    assert "$.verdict" in bad["error"]["message"]
    assert "$.count" in bad["error"]["message"]
    assert "perhaps" in bad["text"]
    assert "not JSON" in prose["error"]["message"]


async def test_the_text_alone_is_enough_to_go_on(codex: Path, mode: str, lab: Lab) -> None:
    """Half of the clients show their model nothing else."""
    lab.script("first", do(Patch("*** Add File: new.txt\n+hello")), say("First."))
    lab.script("second", do(Patch("*** Add File: other.txt\n+hello")), say("Second."))
    lab.script("third", say("Third."))

    def thread_of(text: str) -> str:
        (thread,) = {*re.findall(r"^thread_id: (\S+)$", text, re.MULTILINE)}
        return thread

    async with connect(mode, codex, lab) as client:

        async def text_of(tool: str, **arguments: Any) -> str:
            (content,) = (await client.call_tool(tool, arguments)).content
            return cast("Any", content).text

        first = await text_of("codex_run", prompt="first", sandbox="workspace-write")
        thread = thread_of(first)
        second = await text_of("codex_resume", prompt="second", thread_id=thread)
        started = await text_of("codex_resume", prompt="third", thread_id=thread, wait_s=0)
        (run_id,) = {*re.findall("run_[0-9a-f]{16}", started)}
        waited = await text_of("codex_wait", run_ids=[run_id], wait_s=600)
        stopped = await text_of("codex_stop", run_id=run_id)
    assert re.search(r"^First\.\n\n---\n", first)
    assert re.search(r"^files changed \(1\): \S*new.txt \(add\)$", first, re.MULTILINE)
    assert re.search(r"^Second\.\n\n---\n", second)
    assert re.search(r"^files changed \(1\): \S*other.txt \(add\)$", second, re.MULTILINE)
    assert re.match(r"Status: (running|queued)\. This is not the final result\.\n", started)
    assert f'Next: Wait for it with codex_wait and run_ids ["{run_id}"]' in started
    assert waited.startswith(f"=== {run_id}: completed ===\nThird.\n\n---\n")
    assert stopped.startswith(f"{run_id}: completed\nThird.\n\n---\n")
    for text in (second, waited, stopped):
        assert thread_of(text) == thread
        assert (
            f'Next: To continue this thread, call codex_resume with thread_id "{thread}".' in text
        )


@pytest.mark.parametrize("length", [900_000, 1_000_000])
async def test_a_huge_prompt_arrives_whole(codex: Path, mode: str, lab: Lab, length: int) -> None:
    prompt = "é" * (length - 4) + " end"
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert result["status"] == "completed"
    assert lab.model.requests[0].prompt == prompt


async def test_a_prompt_may_look_like_an_option(codex: Path, mode: str, lab: Lab) -> None:
    prompt = lab.script("--help -s danger-full-access", say("fine"))
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert result["final_response"] == "fine"
    assert result["sandbox"] == "read-only"


async def test_a_huge_answer_is_cut_in_the_middle_and_says_so(
    codex: Path, mode: str, lab: Lab
) -> None:
    prompt = lab.script("long", say("HEAD" + '\n"ü' * 133_000 + "TAIL"))
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt)
    answer = result["final_response"]
    assert len(answer) <= 40_000
    assert answer.startswith("HEAD")
    assert answer.endswith("TAIL")
    assert "left out" in answer
    del result["text"]
    assert len(json.dumps(result, ensure_ascii=False)) < 50_000


@pytest.mark.usefixtures("each_engine")
async def test_images_folders_and_search_reach_the_model(codex: Path, mode: str, lab: Lab) -> None:
    for name in ("dot.png", "a,b, c.png"):
        (lab.project / name).write_bytes(PNG)
    extra = lab.root / "extra"
    extra.mkdir()
    prompt = lab.script(
        "look",
        do(Patch(f"*** Add File: {extra}/there.txt\n+hi")),
        do(Search("weather oslo"), Say("ok")),
    )
    prompt_off = lab.script("no search", say("ok"))
    async with connect(mode, codex, lab) as client:
        on = await call(
            client,
            "codex_run",
            prompt=prompt,
            images=["dot.png", "a,b, c.png"],
            add_dirs=[str(extra)],
            web_search=True,
            sandbox="workspace-write",
        )
        off = await call(client, "codex_run", prompt=prompt_off, web_search=False)
    assert on["status"] == off["status"] == "completed"
    assert (extra / "there.txt").read_text() == "hi\n"
    assert on["searches"] == ["weather oslo"]
    first, last = lab.model.requests[0].body, lab.model.requests[-1].body
    assert json.dumps(first["input"]).count('"input_image"') == 2
    assert any(tool["type"] == "web_search" for tool in first["tools"])
    assert not any(tool["type"] == "web_search" for tool in last["tools"])


async def test_an_ephemeral_run_leaves_no_thread_or_is_refused(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt="hi", ephemeral=True)
    if number(version) < (0, 99, 0):
        assert result["error"]["kind"] == "codex_unsupported"
        assert version in result["error"]["message"]
    else:
        assert result["status"] == "completed"
        assert result["next"] == "Nothing is left to do."
    assert lab.rollouts() == []


@pytest.mark.usefixtures("each_engine")
async def test_runs_at_once_get_their_own_answers(codex: Path, mode: str, lab: Lab) -> None:
    results: dict[str, Json] = {}

    async def ask(name: str) -> None:
        results[name] = await call(client, "codex_run", prompt=name)

    names = [f"question {i}" for i in range(6)]
    for name in names:
        lab.script(name, say(f"answer to {name}", delay_s=0.3))
    async with (
        connect(mode, codex, lab, "--max-runs", "3") as client,
        anyio.create_task_group() as tasks,
    ):
        for name in names:
            tasks.start_soon(ask, name)
    assert {n: r["final_response"] for n, r in results.items()} == {
        n: f"answer to {n}" for n in names
    }
    assert len({r["thread_id"] for r in results.values()}) == len(names)


async def test_a_failing_tool_call_of_codex_is_not_ours(codex: Path, mode: str, lab: Lab) -> None:
    """An unknown tool leaves no item; the turn goes on."""
    prompt = lab.script("odd", do(Call("no_such_tool", {"a": 1})), say("went on"))
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt=prompt)
    assert result["final_response"] == "went on"
