"""The app-server engine against a fake app-server: what a real one shows rarely or never."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from codex_tools.codex.errors import WiderThanAsked
from codex_tools.codex.json_object import Json
from codex_tools.codex.program import Program
from codex_tools.engines import app_server, app_server_start
from codex_tools.engines.app_server import AppServerEngine
from codex_tools.engines.app_server_sandbox import check_echo, check_turn_echo, sandbox_policy
from codex_tools.engines.engine import EngineAbsent, EngineUnfit, ReviewTarget, TurnRequest
from codex_tools.engines.json_rpc import Notification
from support.engine_turns import request_for, run
from support.fake_codex import FakeCodex
from support.lab import Lab

FAKE = """
import os
def put(**message):
    sys.stdout.write(json.dumps(message) + "\\n")
    sys.stdout.flush()
thread = "01a20000-0000-7000-8000-000000000001"
asked = []
def note(method, **params):
    put(method=method, params={"threadId": thread, **params})
def end(status="completed", **more):
    item = {"type": "agentMessage", "id": "m", "text": "hello"}
    note("item/completed", item=item)
    note("turn/completed", turn={"id": "t", "status": status, **more})
def config():
    return {"sandbox_workspace_write": {"network_access": True}}
def echo(params):
    return {
        "thread": {"id": params.get("threadId", thread)},
        "cwd": params["cwd"],
        "approvalPolicy": params["approvalPolicy"],
        "approvalsReviewer": "user",
        "sandbox": {"type": "readOnly", "networkAccess": False},
    }
def begin(params):
    end()
def on(method, params):
    if method == "config/read":
        return {"config": config()}
    if method.startswith("thread/"):
        return echo(params)
    return {"turn": {"id": "t"}}
%s
for text in sys.stdin:
    message = json.loads(text)
    asked.append(message)
    json.dump({"asked": asked, "argv": sys.argv}, open(os.environ["FAKE_SAID"], "w"))
    if "method" not in message or "id" not in message:
        continue
    result = on(message["method"], message["params"])
    if isinstance(result, str):
        put(id=message["id"], error={"code": -32600, "message": result})
    elif result is not None:
        put(id=message["id"], result=result)
    if message["method"] == "turn/start":
        begin(message["params"])
sys.exit(0)
"""


class Fake:
    """A fake app-server and what it was asked."""

    def __init__(self, fake: FakeCodex, said: Path) -> None:
        self._fake = fake
        self._said = said

    def engine(
        self, code: str = "", version: str = "0.171.0", *, is_only: bool = False
    ) -> AppServerEngine:
        """Return an engine that starts a fake which does otherwise what *code* defines."""
        self._said.unlink(missing_ok=True)
        self._fake.version = version
        program = self._fake.build()
        text = program.read_text()
        # The fake of `exec` reads its stdin to the end first; this one has a dialogue.
        start = text.index("seen = {")
        program.write_text(text[:start] + FAKE % code)
        return AppServerEngine(str(program), is_only=is_only)

    @property
    def asked(self) -> list[Json]:
        """The messages that it got, of the last start."""
        return json.loads(self._said.read_text())["asked"] if self._said.exists() else []

    @property
    def methods(self) -> list[str]:
        return [message.get("method", "") for message in self.asked]

    @property
    def argv(self) -> list[str]:
        return json.loads(self._said.read_text())["argv"]


@pytest.fixture
def server(fake: FakeCodex, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("CODEX_HOME", str(lab.home))
    monkeypatch.setenv("FAKE_SAID", str(tmp_path / "said.json"))
    return Fake(fake, tmp_path / "said.json")


async def test_a_turn_of_the_fake_comes_out_and_everything_is_asked_explicitly(
    server: Fake, lab: Lab
) -> None:
    ran = await run(server.engine(), lab, "x", sandbox="workspace-write")
    assert ran.error is None
    assert ran.result.final_response == "hello"
    assert server.methods == [
        *("initialize", "initialized", "config/read", "thread/start", "turn/start")
    ]
    thread, turn = (message["params"] for message in server.asked[-2:])
    assert (thread["sandbox"], thread["approvalPolicy"]) == ("read-only", "never")
    assert (turn["approvalPolicy"], turn["approvalsReviewer"]) == ("never", "user")
    assert turn["sandboxPolicy"]["networkAccess"] is True
    assert (thread["cwd"], turn["cwd"]) == (str(lab.project), str(lab.project))


UNFIT: dict[str, dict[str, Any]] = {
    "profiles": {"profile": "fast"},
    "reviews with sandbox": {
        "review": ReviewTarget("uncommitted"),
        "sandbox": "workspace-write",
    },
    "reviews with an output schema": {
        "review": ReviewTarget("uncommitted"),
        "output_schema": {"type": "object"},
    },
    "more than 64 bits": {"output_schema": {"type": "integer", "maximum": 10**30}},
    "takes the setting": {"config": (("tools.at", "2026-01-01"),)},
}


@pytest.mark.parametrize("what", UNFIT)
async def test_what_only_exec_can_do_starts_nothing(what: str, server: Fake, lab: Lab) -> None:
    ran = await run(server.engine(), lab, "x", **UNFIT[what])
    assert isinstance(ran.error, EngineUnfit)
    assert what in str(ran.error)
    assert server.asked == []


async def test_an_old_codex_rules_and_an_access_token_are_exec_s_too(
    server: Fake, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = await run(server.engine(version="0.147.0"), lab, "x")
    assert isinstance(ran.error, EngineUnfit)
    rules = lab.home / "rules"
    rules.mkdir()
    (rules / "own.rules").write_text('prefix_rule(pattern=["ls"], decision="allow")\n')
    ran = await run(server.engine(), lab, "x")
    assert isinstance(ran.error, EngineUnfit)
    assert server.asked == []
    assert (await run(server.engine(), lab, "x", keep_rules=True)).error is None
    (rules / "own.rules").unlink()
    monkeypatch.setenv("CODEX_ACCESS_TOKEN", "planted")
    assert isinstance((await run(server.engine(), lab, "x")).error, EngineUnfit)


@pytest.mark.parametrize("name", ["forced_login_method", "forced_chatgpt_workspace_id"])
async def test_a_turn_for_which_a_login_is_forced_is_left_to_exec(
    name: str, server: Fake, lab: Lab
) -> None:
    ran = await run(server.engine(f"def config(): return {{{name!r}: 'chatgpt'}}"), lab, "x")
    assert isinstance(ran.error, EngineUnfit)
    assert name in str(ran.error)
    assert server.methods[-1] == "config/read"


async def test_settings_arrive_in_a_form_that_no_order_can_change(server: Fake, lab: Lab) -> None:
    """Seen before: 0.163.0 started MCP servers that had been turned off, now and then."""
    config = (
        ("mcp_servers", '{"a.b" = {enabled = false}}'),
        ("mcp_servers.one.enabled", "false"),
        ("tools.web_search", "true"),
        ("tools", "{view_image = true}"),
        ("tools.web_search.context", '"low"'),
        ("model_verbosity", '"low"'),
    )
    await run(server.engine(), lab, "x", config=config)
    sent = next(each for each in server.asked if each.get("method") == "thread/start")
    settings = sent["params"]["config"]
    assert not [key for key in settings if "." in key]
    assert settings["mcp_servers"] == {"a.b": {"enabled": False}, "one": {"enabled": False}}
    assert settings["tools"] == {"view_image": True, "web_search": {"context": "low"}}
    assert settings["model_verbosity"] == "low"


ECHOES = {
    "cwd": 'result["cwd"] = "/"',
    "approval policy": 'result["approvalPolicy"] = "on-request"',
    "approvals reviewer": 'result["approvalsReviewer"] = "auto_review"',
    "sandbox": 'result["sandbox"] = {"type": "workspaceWrite"}',
    "sandbox ": 'result["sandbox"] = {"type": "readOnly", "networkAccess": True}',
    "sandbox  ": 'del result["sandbox"]',
    "no id": 'result["thread"] = {}',
    "thread": 'result["thread"] = {"id": "another"}',
}


@pytest.mark.parametrize("what", ECHOES)
async def test_another_thread_than_asked_for_gets_no_turn(
    what: str, server: Fake, lab: Lab
) -> None:
    code = f"""
plain = echo
def echo(params):
    result = plain(params)
    {ECHOES[what]}
    return result
"""
    ran = await run(server.engine(code), lab, "x", thread_id="01a20000-0000-7000-8000-000000000009")
    assert isinstance(ran.error, EngineUnfit)
    assert what.strip() in str(ran.error)
    assert "turn/start" not in server.methods


WIDER = {
    "dangerFullAccess": {"type": "dangerFullAccess"},
    "externalSandbox": {"type": "externalSandbox", "networkAccess": "restricted"},
    "an unknown sandbox": {},
    "newSandbox": {"type": "newSandbox"},
    "/etc writable": {"type": "workspaceWrite", "writableRoots": ["/etc"]},
}


@pytest.mark.parametrize("what", WIDER)
async def test_a_wider_sandbox_than_asked_for_ends_the_turn(
    what: str, server: Fake, lab: Lab
) -> None:
    settings = {"sandboxPolicy": WIDER[what]}
    code = f"""
def begin(params):
    note("thread/settings/updated", threadSettings={settings!r})
    end()
"""
    ran = await run(server.engine(code), lab, "x", sandbox="workspace-write")
    assert isinstance(ran.error, WiderThanAsked)
    assert what in str(ran.error)


async def test_network_that_was_not_asked_for_and_another_folder_end_the_turn(
    server: Fake, lab: Lab
) -> None:
    for settings in (
        {"sandboxPolicy": {"type": "readOnly", "networkAccess": True}},
        {"sandboxPolicy": {"type": "readOnly"}, "cwd": "/etc"},
        {"sandboxPolicy": {"type": "readOnly"}, "approvalsReviewer": "auto_review"},
    ):
        code = f"""
def begin(params):
    note("thread/settings/updated", threadSettings={settings!r})
    end()
"""
        assert isinstance((await run(server.engine(code), lab, "x")).error, WiderThanAsked)


async def test_narrower_settings_and_those_of_another_thread_end_nothing(
    server: Fake, lab: Lab
) -> None:
    code = """
def begin(params):
    note("thread/settings/updated", threadSettings={"sandboxPolicy": {"type": "readOnly"}})
    note("thread/settings/updated", threadId="of-an-agent", threadSettings={})
    end()
"""
    ran = await run(server.engine(code), lab, "x", sandbox="workspace-write")
    assert ran.error is None


SILENT = {
    "initialize": "def on(method, params): return None",
    "config/read": "def on(method, params): return {} if method == 'initialize' else None",
    "thread/start": "def on(method, _): return {} if method != 'thread/start' else sys.exit(3)",
    "dead": "sys.stderr.write('no luck today'); sys.exit(3)",
    "refused": "def on(method, params): return 'not today'",
}


@pytest.mark.parametrize("what", SILENT)
async def test_a_server_that_does_not_start_is_told_apart_from_a_turn_that_fails(
    what: str, server: Fake, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        app_server_start, "INITIALIZE_WITHIN_S", 0.5 if what == "initialize" else 60
    )
    monkeypatch.setattr(app_server_start, "ANSWER_WITHIN_S", 0.5)
    ran = await run(server.engine(SILENT[what]), lab, "x")
    assert isinstance(ran.error, EngineUnfit)
    words = {"dead": "no luck today", "refused": "not today", "thread/start": "has ended"}
    assert words.get(what, f"no answer to {what}") in str(ran.error)
    # What stops one thread does not stop those of other turns.
    assert isinstance(ran.error, EngineAbsent) is (what not in ("config/read", "thread/start"))


async def test_without_another_engine_a_server_that_ends_at_once_is_a_failed_turn(
    server: Fake, lab: Lab
) -> None:
    said = "Error: CODEX_HOME points to '/gone', but that path does not exist"
    code = f"sys.stderr.write({said!r}); sys.exit(1)"
    ran = await run(server.engine(code, is_only=True), lab, "x")
    assert ran.kind == "bad_config"
    assert isinstance((await run(server.engine(code), lab, "x")).error, EngineUnfit)
    code = "def on(method, params): return None if method == 'initialize' else {}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_server_start, "INITIALIZE_WITHIN_S", 0.5)
        ran = await run(server.engine(code, is_only=True), lab, "x")
    assert isinstance(ran.error, EngineUnfit)


async def test_a_server_that_finds_the_database_half_made_is_started_again(
    server: Fake, lab: Lab, tmp_path: Path
) -> None:
    text = "Error: failed to initialize state runtime at /home/codex"
    tried = tmp_path / "tried"
    code = (
        f"open({str(tried)!r}, 'a').write('x')\n"
        f"if len(open({str(tried)!r}).read()) < 3: sys.stderr.write({text!r}); sys.exit(1)"
    )
    assert (await run(server.engine(code), lab, "x")).error is None
    assert tried.read_text() == "xxx"
    tried.unlink()
    code = f"open({str(tried)!r}, 'a').write('x'); sys.stderr.write({text!r}); sys.exit(1)"
    assert isinstance((await run(server.engine(code), lab, "x")).error, EngineUnfit)
    assert len(tried.read_text()) == len(app_server_start.RETRY_AFTER_S) + 1


async def test_a_server_that_dies_in_the_turn_is_a_failure_of_the_turn(
    server: Fake, lab: Lab
) -> None:
    for code, kind in (
        ("def begin(params): os.kill(os.getpid(), 9)", "codex_crashed"),
        ("def begin(params): note('turn/started', turn={}); sys.exit(0)", "codex_crashed"),
        ("plain = on\ndef on(m, p): return 'no' if m == 'turn/start' else plain(m, p)", None),
    ):
        ran = await run(server.engine(code), lab, "x")
        assert ran.error is not None
        assert not isinstance(ran.error, EngineUnfit)
        assert kind in (None, ran.kind)


async def test_a_turn_goes_on_without_an_answer_to_its_start(
    server: Fake, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_server, "ANSWER_WITHIN_S", 2.0)
    code = "plain = on\ndef on(m, p): return None if m == 'turn/start' else plain(m, p)"
    ran = await run(server.engine(code), lab, "x")
    assert ran.error is None
    assert ran.result.final_response == "hello"


async def test_every_request_of_codex_is_answered_and_none_allows_anything(
    server: Fake, lab: Lab
) -> None:
    code = """
def begin(params):
    for number, method in enumerate((
        "item/commandExecution/requestApproval", "item/fileChange/requestApproval",
        "item/permissions/requestApproval", "mcpServer/elicitation/request",
        "item/tool/requestUserInput", "item/tool/call", "applyPatchApproval",
        "execCommandApproval", "account/chatgptAuthTokens/refresh", "attestation/generate",
        "new/in/some/version",
    )):
        put(id=number, method=method, params={"threadId": thread, "permissions": {"network": 1}})
    while len([each for each in asked if "method" not in each]) < 11:
        asked.append(json.loads(sys.stdin.readline()))
    json.dump({"asked": asked, "argv": sys.argv}, open(os.environ["FAKE_SAID"], "w"))
    end()
"""
    ran = await run(server.engine(code), lab, "x")
    assert ran.error is None
    answers = {each["id"]: each for each in server.asked if "method" not in each}
    assert [answers[number].get("result") for number in range(5)] == [
        {"decision": "decline"},
        {"decision": "decline"},
        {"permissions": {}, "scope": "turn"},
        {"action": "decline"},
        {"answers": {}},
    ]
    assert {answers[number]["error"]["code"] for number in range(5, 11)} == {-32601}


async def test_a_key_is_not_sent_where_codex_would_write_it(
    server: Fake, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEX_API_KEY", "sk-planted")
    ran = await run(server.engine(), lab, "x")
    assert isinstance(ran.error, EngineUnfit)
    assert "written to disk" in str(ran.error)
    assert "sk-planted" not in json.dumps(server.asked)
    stored = 'def config(): return {"cli_auth_credentials_store": "ephemeral"}'
    ran = await run(server.engine(stored), lab, "x")
    assert ran.error is None
    assert server.methods[3] == "account/login/start"
    assert server.asked[3]["params"] == {"type": "apiKey", "apiKey": "sk-planted"}
    assert not any("sk-planted" in each for each in server.argv)
    assert 'cli_auth_credentials_store="ephemeral"' in server.argv


async def test_the_plan_of_a_turn_starts_nothing_and_names_its_environment(
    server: Fake, lab: Lab
) -> None:
    engine = server.engine()
    request = await request_for(engine, lab, "x", config=(("sandbox_workspace_write.x", "1"),))
    plan = await engine.plan_turn(request)
    assert plan.argv[1:] == ("app-server", "-c", "sandbox_workspace_write.x=1")
    assert "CODEX_HOME" in plan.environment
    assert server.asked == []


async def test_nothing_of_a_server_that_ignores_the_end_of_its_input_is_left(
    server: Fake, lab: Lab, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    code = f"""
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
open({str(pid)!r}, "w").write(str(os.getpid()))
def begin(params):
    note("turn/started", turn={{"id": "t"}})
    time.sleep(600)
"""
    with anyio.move_on_after(60) as scope:

        def report(progress: Any) -> None:
            if progress.started:
                scope.cancel()

        await run(server.engine(code), lab, "x", report)
    assert scope.cancelled_caught
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def turn(**more: Any) -> TurnRequest:
    program = Program(Path("/no/codex"), (0, 171, 0), "0.171.0", None, frozenset())
    values: dict[str, Any] = {"cwd": Path("/p"), "sandbox": "workspace-write"}
    return TurnRequest(program, "x", timeout_s=1, stall_s=1, **(values | more))


def test_the_policy_of_a_turn_has_all_fields_and_tolerates_any_configuration() -> None:
    assert sandbox_policy(turn(sandbox="read-only"), {"network_access": True}) == {
        "type": "readOnly",
        "networkAccess": False,
    }
    assert sandbox_policy(turn(sandbox="danger-full-access"), {}) == {"type": "dangerFullAccess"}
    configured: Json = {
        "writable_roots": ["/a", 1, "/b"],
        "network_access": "yes",
        "exclude_tmpdir_env_var": True,
        "exclude_slash_tmp": None,
    }
    assert sandbox_policy(turn(add_dirs=(Path("/b"), Path("/c"))), configured) == {
        "type": "workspaceWrite",
        "writableRoots": ["/a", "/b", "/c"],
        "networkAccess": False,
        "excludeTmpdirEnvVar": True,
        "excludeSlashTmp": False,
    }


def test_a_fork_must_be_another_thread_and_a_resumed_one_the_same() -> None:
    def echo(thread_id: str) -> Json:
        return {
            "thread": {"id": thread_id},
            "cwd": "/p",
            "approvalPolicy": "never",
            "sandbox": {"type": "readOnly"},
        }

    assert check_echo(turn(), echo("a")) is None
    assert check_echo(turn(thread_id="a"), echo("a")) is None
    assert check_echo(turn(thread_id="a"), echo("b")) == "thread b"
    assert check_echo(turn(thread_id="a", fork=True), echo("a")) == "thread a"
    assert check_echo(turn(thread_id="a", fork=True), echo("b")) is None
    assert check_echo(turn(approvals="ask"), echo("a")) == "approval policy never"


def test_full_access_allows_every_echo_of_the_sandbox() -> None:
    request = turn(sandbox="danger-full-access")
    for taken in ({"type": "dangerFullAccess"}, {"type": "readOnly", "networkAccess": True}):
        settings = {"threadId": "t", "threadSettings": {"sandboxPolicy": taken}}
        policy = sandbox_policy(request, {})
        note = Notification("thread/settings/updated", settings)
        check_turn_echo(request, "t", note, policy)
