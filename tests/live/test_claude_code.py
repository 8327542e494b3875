"""The real Claude Code calls the real Codex through this server; both models are scripted."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from codex_tools.engines.app_server_preparation import OLDEST
from mcp_server_codex.app import INSTRUCTIONS
from mcp_server_codex.calls import TOOLS
from mcp_server_codex.cli.scripted_model import Call, Patch, Shell, api_error, do, say
from mcp_server_codex.wire import to_tool
from support.claude_code import MOST_SHOWN, ClaudeCode
from support.codex_versions import number, real_codex
from support.lab import Json, Lab
from support.scripted_messages import ScriptedMessages, Step, ToolResult, Use

RUN, RESUME = "mcp__codex__codex_run", "mcp__codex__codex_resume"


@pytest.fixture
def messages() -> Generator[ScriptedMessages]:
    """The model of Claude Code."""
    with ScriptedMessages() as model:
        yield model


@pytest.fixture
def claude(lab: Lab, messages: ScriptedMessages, mode: str, codex: Path) -> ClaudeCode:
    client = ClaudeCode(lab, messages, mode)
    client.add_server(codex)
    return client


def result_of(text: str) -> Json:
    """Return the structured result that Claude Code hands its model as a text."""
    return json.loads(text)


def ask(claude: ClaudeCode, *steps: Step) -> Json:
    """Let the model take *steps*; return the last line, in which Claude Code sums up."""
    claude.model.steps = steps
    lines = claude.ask("Go.")
    assert claude.spoke_as_asked
    assert lines[-1]["type"] == "result"
    assert lines[-1]["permission_denials"] == []
    return lines[-1]


def test_the_model_gets_the_structured_result_and_goes_on_in_the_thread(
    claude: ClaudeCode, lab: Lab, version: str
) -> None:
    first = lab.script("first", do(Patch("*** Add File: new.txt\n+hello")), say("Made it."))
    lab.script("second", say("Still here."))
    end = ask(
        claude,
        Use(RUN, {"prompt": first, "sandbox": "workspace-write"}),
        Use(RESUME, {"last": True, "prompt": "second"}),
        "All done.",
    )
    assert end["result"] == "All done."
    made, resumed = claude.model.tool_results
    assert (made.is_error, resumed.is_error) == (False, False)
    result = result_of(made.text)
    assert result["status"] == "completed"
    assert result["final_response"] == "Made it."
    assert result["codex_version"] == version
    assert result["cwd"] == str(lab.project)
    assert [f["kind"] for f in result["files_changed"]] == ["add"]
    assert (lab.project / "new.txt").read_text() == "hello\n"
    (rollout,) = lab.rollouts()
    assert rollout.stem.endswith(result["thread_id"])

    # The thread id is known now: to another Claude Code and another server.
    lab.script("third", say("And here."))
    claude.model.requests.clear()
    again = Use(RESUME, {"thread_id": result["thread_id"], "prompt": "third"})
    ask(claude, again, "All done.")
    (third,) = claude.model.tool_results
    for text, answer in ((resumed.text, "Still here."), (third.text, "And here.")):
        assert result_of(text)["thread_id"] == result["thread_id"]
        assert result_of(text)["final_response"] == answer
        assert result_of(text)["sandbox"] == "workspace-write"
    assert lab.rollouts() == [rollout]


def test_the_model_is_shown_all_tools_and_the_instructions_whole(claude: ClaudeCode) -> None:
    ask(claude, "Nothing to do.")
    offered = claude.model.offered
    assert offered.keys() == {f"mcp__codex__{tool.name}" for tool in TOOLS}
    for tool in map(to_tool, TOOLS):
        shown = offered[f"mcp__codex__{tool.name}"]
        assert len(shown["description"]) < MOST_SHOWN
        assert shown["description"] == tool.description
        assert shown["input_schema"] == tool.input_schema
    assert len(INSTRUCTIONS) < MOST_SHOWN
    assert INSTRUCTIONS in claude.model.told


def test_the_model_is_told_why_a_run_failed_and_what_to_do(claude: ClaudeCode, lab: Lab) -> None:
    message = "Unsupported value: 'turbo' is not supported with this model."
    prompt = lab.script("bad", api_error(400, message, "invalid_request_error"))
    ask(claude, Use(RUN, {"prompt": prompt}), Use(RUN, {"promt": "x"}), "I see.")
    failed, refused = claude.model.tool_results
    assert (failed.is_error, refused.is_error) == (True, True)
    assert failed.text.startswith("invalid_request: ")
    assert message in failed.text
    assert "\nHint: " in failed.text
    (rollout,) = lab.rollouts()
    assert f"thread_id: {rollout.stem[-36:]}" in failed.text
    assert refused.text.startswith("invalid_arguments: ")
    assert "did you mean 'prompt'?" in refused.text
    assert "\nHint: " in refused.text


def test_with_no_person_there_what_is_over_the_ceiling_is_refused(
    claude: ClaudeCode, lab: Lab
) -> None:
    ask(claude, Use(RUN, {"prompt": "x", "sandbox": "danger-full-access"}), "I see.")
    (refused,) = claude.model.tool_results
    assert refused.is_error
    assert refused.text.startswith("not_allowed: ")
    assert "did not accept" in refused.text
    assert "--max-sandbox" in refused.text
    # It was asked, and has cancelled by itself.
    lines = (lab.state / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["declined", "refused"]
    assert lab.model.requests == []


OUTSIDE: Json = {"sandbox": "workspace-write", "approvals": "ask"}


def escalated(lab: Lab) -> tuple[str, Path]:
    """Let Codex ask for a file outside its sandbox; return the prompt and the file."""
    out = lab.root / "out"
    arguments: Json = {
        "cmd": f"touch {out}",
        "sandbox_permissions": "require_escalated",
        "justification": "need it",
    }
    return lab.script("ask", do(Call("exec_command", arguments)), say("Done.")), out


def test_its_model_answers_what_codex_asks_where_there_is_no_person(
    claude: ClaudeCode, lab: Lab, version: str
) -> None:
    """With -p, Claude Code cancels each form by itself."""
    if number(version) < OLDEST:
        pytest.skip("this Codex cannot ask")
    claude.add_server(real_codex(version), "--engine", "auto", "--approvals", "caller")
    prompt, out = escalated(lab)

    def answer(results: Sequence[ToolResult]) -> Use:
        asked = result_of(results[0].text)
        (question,) = asked["questions"]
        name = {"run_id": asked["run_id"], "question_id": question["id"]}
        return Use("mcp__codex__codex_answer", name | {"decision": "accept"})

    def wait(results: Sequence[ToolResult]) -> Use:
        run_id = result_of(results[0].text)["run_id"]
        return Use("mcp__codex__codex_wait", {"run_ids": [run_id]})

    ask(claude, Use(RUN, {"prompt": prompt, **OUTSIDE}), answer, wait, "All done.")
    asked, answered, waited = claude.model.tool_results
    assert result_of(asked.text)["status"] == "needs_answer"
    assert not answered.is_error
    assert result_of(waited.text)["runs"][0]["final_response"] == "Done."
    assert out.exists()


@pytest.mark.parametrize("action", ["accept", "decline"])
def test_its_person_answers_what_codex_asks(
    claude: ClaudeCode, lab: Lab, version: str, action: str
) -> None:
    """A hook of Claude Code stands for the person: it gets the form and answers it."""
    if number(version) < OLDEST:
        pytest.skip("this Codex cannot ask")
    claude.add_server(real_codex(version), "--engine", "auto", "--approvals", "person")
    prompt, out = escalated(lab)
    reply: Json = {"hookEventName": "Elicitation", "action": action, "content": {}}
    seen = lab.root / "form.json"
    command = f"cat > {seen}; echo {shlex.quote(json.dumps({'hookSpecificOutput': reply}))}"
    claude.hook("Elicitation", command)
    ask(claude, Use(RUN, {"prompt": prompt, **OUTSIDE}), "All done.")
    (result,) = claude.model.tool_results
    data = result_of(result.text)
    assert (data["status"], data["final_response"]) == ("completed", "Done.")
    assert out.exists() is (action == "accept")
    assert f"touch {out}" in seen.read_text()


def test_the_commands_of_codex_see_nothing_of_claude_code(claude: ClaudeCode, lab: Lab) -> None:
    prompt = lab.script("env", do(Shell("env; echo end-of-env")), say("Seen."))
    ask(claude, Use(RUN, {"prompt": prompt}), "Good.")
    seen = json.dumps(lab.model.requests[-1].body["input"])
    assert "end-of-env" in seen
    assert "FAR_END=" in seen
    for name in ("ANTHROPIC_", "CLAUDE", "sk-scripted"):
        assert name not in seen, name


def test_a_run_that_is_silent_for_longer_than_the_idle_limit_is_waited_for(lab: Lab) -> None:
    """Claude Code looks each half minute whether a server was silent for too long."""
    prompt = lab.script("think", say("Thought it over.", delay_s=65))
    with ScriptedMessages((Use(RUN, {"prompt": prompt}), "Good.")) as messages:
        claude = ClaudeCode(lab, messages)
        claude.add_server(real_codex("0.163.0"))
        claude.ask("Go.", CLAUDE_CODE_MCP_TOOL_IDLE_TIMEOUT="20000")
        (result,) = messages.tool_results
    assert not result.is_error, result.text
    assert result_of(result.text)["final_response"] == "Thought it over."
    assert result_of(result.text)["duration_s"] > 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_nothing_outlives_a_claude_code_that_is_ended(
    claude: ClaudeCode, lab: Lab, number: signal.Signals
) -> None:
    await claude.end_in_mid_run(RUN, number)
    # What was said so far is in the thread, and it can be gone on with.
    (rollout,) = lab.rollouts()
    lab.script("after", say("Here again."))
    claude.model.requests.clear()
    ask(claude, Use(RESUME, {"thread_id": rollout.stem[-36:], "prompt": "after"}), "Good.")
    (after,) = claude.model.tool_results
    assert result_of(after.text)["final_response"] == "Here again."
