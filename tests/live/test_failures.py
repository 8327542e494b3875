"""How failures of the provider, the folder and the network come out: real Codex, scripted model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path

import anyio
import pytest

from mcp_server_codex.cli.loopback import Loopback, QuietHandler
from mcp_server_codex.cli.scripted_model import (
    Cut,
    Fail,
    Incomplete,
    Refuse,
    Reply,
    Step,
    api_error,
    say,
)
from support.codex_versions import number
from support.lab import BY_EXEC, ENGINE, Json, Lab, call, connect

BAD_REQUEST = api_error(400, "Unknown parameter: frobnicate.", "invalid_request_error", "bad")
UNAUTHORIZED = api_error(
    401, "Incorrect API key provided: sk-proj-abcdefghijklmnop.", "invalid_request_error"
)
FORBIDDEN = api_error(403, "Your organization may not do this.", "invalid_request_error")
NO_MODEL = api_error(
    404,
    "The model `nope` does not exist or you do not have access to it.",
    "invalid_request_error",
    "model_not_found",
)
TOO_MANY = api_error(429, "Rate limit reached for requests.", "requests", "rate_limit_exceeded")
USAGE_LIMIT = Refuse(
    429,
    {
        "error": {
            "type": "usage_limit_reached",
            "message": "The usage limit has been reached",
            "plan_type": "plus",
            "resets_at": 1893456000,
        }
    },
)
# As an HTTP 429 it cannot be told from a rate limit on 0.98 to 0.147.
NO_QUOTA = Fail("insufficient_quota", "You exceeded your current quota.")
BROKEN = api_error(500, "The server had an error.", "server_error")
BUSY = api_error(503, "Overloaded.", "server_error", "server_is_overloaded")
SCHEMA = api_error(
    400,
    "Invalid schema for response_format 'codex_output_schema': 'additionalProperties' is required.",
    "invalid_request_error",
    "invalid_json_schema",
)

ALWAYS: dict[str, tuple[Step, str]] = {
    "400": (BAD_REQUEST, "invalid_request"),
    "401": (UNAUTHORIZED, "not_authenticated"),
    "403": (FORBIDDEN, "not_authenticated"),
    "404 no such model": (NO_MODEL, "model_unavailable"),
    "429": (TOO_MANY, "rate_limited"),
    "500 for ever": (BROKEN, "overloaded"),
    "503": (BUSY, "overloaded"),
    "usage limit": (USAGE_LIMIT, "usage_limit"),
    "no quota": (NO_QUOTA, "usage_limit"),
    "context window": (
        Fail("context_length_exceeded", "Your input exceeds the context window of this model."),
        "context_window_exceeded",
    ),
    "declined": (Fail("invalid_prompt", "Invalid prompt: it was flagged."), "refused"),
    "schema not strict": (SCHEMA, "invalid_output_schema"),
    "stream cut for ever": (Cut(), "network"),
    "empty answer": (Reply(()), "no_answer"),
    "blank answer": (say("  \n"), "no_answer"),
}


async def test_each_failure_comes_out_with_its_kind_a_hint_and_its_thread(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    for name, (step, _) in ALWAYS.items():
        lab.script(name, step)
    lab.script("429 once", TOO_MANY, say("recovered"))
    lab.script("500 once", BROKEN, say("recovered"))
    lab.script("cut once", Cut(), say("recovered"))
    lab.script("cut off", Incomplete("max_output_tokens"))
    results: dict[str, Json] = {}

    async def ask(name: str) -> None:
        results[name] = await call(client, "codex_run", prompt=name, wait_s=300)

    async with connect(mode, codex, lab, "--max-runs", "20") as client:
        await all_at_once(ask, [*ALWAYS, "429 once", "500 once", "cut once", "cut off"])

    errors = {name: results[name]["error"] for name in ALWAYS}
    kinds = {name: error and error["kind"] for name, error in errors.items()}
    assert kinds == {name: kind for name, (_, kind) in ALWAYS.items()}
    for name in ALWAYS:
        result = results[name]
        error = result["error"]
        assert result["status"] == "failed"
        assert error["message"]
        assert error["hint"]
        assert result["thread_id"] in result["text"]
        assert result["run_id"] in result["text"]
        assert result["text"].startswith(f"{error['kind']}: ")
        assert "sk-proj-" not in str(result)
    assert results["500 once"]["final_response"] == "recovered"
    assert results["cut once"]["final_response"] == "recovered"
    assert any("Reconnecting" in w for w in results["cut once"]["warnings"])
    assert results["cut off"]["status"] == "failed"
    # 0.60.1 tries again by itself after a 429; for later versions we do.
    once = results["429 once"]
    assert once["status"] == "completed"
    assert once["attempts"] == (1 if number(version) < (0, 98, 0) else 2)
    assert {r["retryable"] for r in (results["429"]["error"], results["503"]["error"])} == {True}
    assert results["usage limit"]["error"]["retryable"] is False


async def test_a_refused_connection_ends_by_the_run_s_own_time_limit(
    codex: Path, mode: str, lab: Lab
) -> None:
    """0.169 tries for ever; the limit is ours."""
    nowhere = {"model_providers.scripted.base_url": "http://127.0.0.1:9/v1"}
    async with connect(
        mode, codex, lab, "--allow-config", "model_providers.scripted.base_url"
    ) as client:
        result = await call(client, "codex_run", prompt="hi", timeout_s=4, config=nowhere)
    assert result["status"] == "timed_out"
    assert result["error"]["kind"] == "timed_out"
    assert "4 s" in result["error"]["message"]


async def test_reconnecting_for_ever_is_a_stall(codex: Path, mode: str, lab: Lab) -> None:
    nowhere = {"model_providers.scripted.base_url": "http://127.0.0.1:9/v1"}
    allow = ("--allow-config", "model_providers.*", "--stall-s", "3")
    async with connect(mode, codex, lab, *allow) as client:
        result = await call(client, "codex_run", prompt="hi", timeout_s=100, config=nowhere)
    assert result["status"] == "timed_out"
    assert result["error"]["kind"] == "stalled"


async def test_outside_a_repository_codex_refuses_unless_told(
    codex: Path, mode: str, lab: Lab
) -> None:
    plain = lab.root / "plain"
    plain.mkdir()
    async with connect(mode, codex, lab) as client:
        refused = await call(client, "codex_run", prompt="hi", cwd=str(plain))
        allowed = await call(
            client, "codex_run", prompt="hi", cwd=str(plain), skip_git_repo_check=True
        )
    assert refused["error"]["kind"] == "untrusted_directory"
    assert "skip_git_repo_check" in refused["error"]["hint"]
    assert allowed["status"] == "completed"


async def test_a_broken_configuration_is_named(codex: Path, mode: str, lab: Lab) -> None:
    (lab.home / "config.toml").write_text("model = \n")
    async with connect(mode, codex, lab) as client:
        result = await call(client, "codex_run", prompt="hi")
    assert result["error"]["kind"] == "bad_config"
    assert result["thread_id"] is None


async def test_a_missing_codex_home_is_a_matter_of_configuration(
    codex: Path, mode: str, lab: Lab
) -> None:
    async with connect(mode, codex, lab, env={"CODEX_HOME": str(lab.root / "gone")}) as client:
        result = await call(client, "codex_run", prompt="hi")
    assert result["error"]["kind"] == "bad_config"


PAGE = (
    '<!DOCTYPE html><html lang="en-US"><head><title>Just a moment...</title></head><body>Enable'
    " JavaScript and cookies to continue</body></html>"
)
BLOCKED = PAGE.replace("Just a moment...", "Attention Required! | Cloudflare").replace(
    "Enable", "Sorry, you have been blocked. Cloudflare"
)
COUNTRY = json.dumps(
    {
        "error": {
            "message": "Country, region, or territory not supported",
            "type": "request_forbidden",
            "param": None,
            "code": "unsupported_country_region_territory",
        }
    }
)
CHATGPT = json.dumps(
    {"detail": "The 'gpt-9' model is not supported when using Codex with a ChatGPT account."}
)
ANSWERS = {
    "country": (403, "application/json", COUNTRY),
    "cloudflare": (403, "text/html", PAGE),
    "blocked": (403, "text/html", BLOCKED),
    "proxy": (407, "text/plain", "Proxy Authentication Required"),
    "portal": (511, "text/html", "<html><title>Log in to this network</title></html>"),
    "wrong": (404, "text/html", "<html><title>404 Not Found</title></html>"),
    "chatgpt": (400, "application/json", CHATGPT),
}


class _Middlebox(QuietHandler):
    """Answers in place of the provider: the first part of the path says how."""

    asked: list[str]

    def do_POST(self) -> None:  # http.server's name
        self.rfile.read(int(self.headers.get("content-length") or 0))
        name = self.path.split("/")[1]
        self.asked.append(name)
        status, kind, text = ANSWERS[name]
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


async def test_what_answers_in_place_of_the_provider_is_no_matter_of_a_login(
    codex: Path, mode: str, lab: Lab
) -> None:
    expected = {
        "country": ("refused", "country"),
        "cloudflare": ("network", "Cloudflare"),
        "blocked": ("network", "Cloudflare"),
        "proxy": ("network", "HTTPS_PROXY"),
        "portal": ("network", "HTTPS_PROXY"),
        "wrong": ("network", "base_url"),
        "chatgpt": ("model_unavailable", "model"),
    }
    asked: list[str] = []
    box = Loopback(_Middlebox, asked=asked)
    results: dict[str, Json] = {}
    provider = "model_providers.scripted"

    async def ask(name: str) -> None:
        once = {f"{provider}.stream_max_retries": 0, f"{provider}.request_max_retries": 0}
        config = {f"{provider}.base_url": f"{box.url}/{name}"} | once
        results[name] = await call(client, "codex_run", prompt=name, config=config, wait_s=200)

    try:
        async with connect(mode, codex, lab, "--allow-config", f"{provider}.*") as client:
            await all_at_once(ask, [*expected])
    finally:
        box.close()
    for name, (kind, hint) in expected.items():
        error = results[name]["error"]
        assert (error["kind"], error["retryable"]) == (kind, False), error
        assert hint in error["hint"]
        assert "codex login" not in error["hint"]
        assert asked.count(name) == results[name]["attempts"] == 1, name


async def test_a_failed_start_is_told_by_its_cause(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    config = lab.home / "config.toml"
    good = config.read_text()
    results: dict[str, Json] = {}

    async def ask(name: str, text: str) -> None:
        config.write_text(text)
        results[name] = (await call(client, "codex_run", prompt="hi", wait_s=60))["error"]

    async with connect(mode, codex, lab) as client:
        await ask("provider", good.replace('"scripted"', '"nope"'))
        await ask("instructions", f'model_instructions_file = "/no/such.md"\n{good}')
        await ask("profile", f'profile = "x"\n{good}\n[profiles.x]\nmodel_verbosity = "low"\n')
        (lab.home / "auth.json").write_text('{"OPENAI_API_KEY": "sk-test-abcdefgh"}')
        await ask("login", f'forced_login_method = "chatgpt"\n{good}')
        (lab.home / "auth.json").unlink(missing_ok=True)
        shutil.rmtree(lab.home / "sessions", ignore_errors=True)
        (lab.home / "sessions").touch()
        await ask("sessions", good)
    kinds = {name: error and (error["kind"], error["retryable"]) for name, error in results.items()}
    old, by_app = number(version) < (0, 98, 0), ENGINE == "app-server"
    expected: dict[str, tuple[str, bool] | None] = {
        "provider": ("bad_config", False),
        "instructions": None if old else ("bad_config", False),
        "profile": ("bad_config", False) if number(version) >= (0, 134, 0) else None,
        "login": ("codex_unsupported" if by_app else "not_authenticated", False),
        # Newer ones work on without.
        "sessions": ("not_started", False) if number(version) < (0, 120, 0) else None,
    }
    assert kinds == expected
    assert "forced_login_method" not in results["provider"]["hint"]
    assert ("--engine auto" if by_app else "workspace") in results["login"]["hint"]
    if number(version) < (0, 120, 0):
        assert "Not a directory" in results["sessions"]["message"]


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts need root and unshare"
)
@pytest.mark.parametrize("fault", ["read-only", "full"])
async def test_a_codex_home_that_cannot_be_written_is_named(
    codex: Path, version: str, mode: str, lab: Lab, fault: str
) -> None:
    home, copy = lab.home, lab.root / "config.toml"
    shutil.copy(home / "config.toml", copy)
    mounts = {
        "read-only": f"mount --bind {home} {home} && mount -o remount,ro,bind {home}",
        "full": f"mount -t tmpfs -o size=16k none {home} && cp {copy} {home}"
        f" && {{ dd if=/dev/zero of={home}/x bs=4k 2> /dev/null; :; }}",
    }
    tried = await anyio.run_process(["unshare", "-m", "sh", "-c", mounts[fault]], check=False)
    if tried.returncode:
        pytest.skip("no mounts allowed here")
    wrapper = lab.root / "codex"
    start = f'exec unshare -m sh -c \'{mounts[fault]}; exec {codex} "$@"\' sh "$@"'
    wrapper.write_text(f"#!/bin/sh\n{start}\n")
    wrapper.chmod(0o755)
    async with connect(mode, wrapper, lab) as client:
        result = await call(client, "codex_run", prompt="hi", wait_s=60)
    if fault == "full" and number(version) < (0, 120, 0):
        assert result["status"] == "completed"  # 0.98.0 only fails to record the thread.
        return
    error = result["error"]
    assert (error["kind"], error["retryable"]) == ("not_started", False), error
    if ENGINE == "app-server":  # 0.163.0 and 0.171.0 do not say why.
        assert "failed to initialize state runtime" in error["message"]
    else:
        assert ("os error 30" if fault == "read-only" else "os error 28") in error["message"]
    assert "CODEX_HOME" in error["hint"]


async def test_a_hook_that_stops_the_prompt_is_no_missing_answer(
    codex: Path, version: str, mode: str, lab: Lab
) -> None:
    if number(version) < (0, 147, 0):
        pytest.skip("it has no such hooks")
    wrapper = (
        lab.root / "codex"
    )  # Without the flag, which app-server ignores, untrusted hooks do not run.
    start = 'shift; set -- exec --dangerously-bypass-hook-trust "$@"'
    wrapper.write_text(f'#!/bin/sh\n[ "$1" = exec ] && {{ {start}; }}\nexec {codex} "$@"\n')
    wrapper.chmod(0o755)
    block = {"type": "command", "command": "echo no prompts today >&2; exit 2"}
    async with connect(mode, wrapper, lab, *BY_EXEC) as client:
        first = await call(client, "codex_run", prompt="hi", wait_s=60)
        hooks = {"hooks": {"UserPromptSubmit": [{"hooks": [block]}]}}
        (lab.home / "hooks.json").write_text(json.dumps(hooks))
        stopped = await call(client, "codex_run", prompt="hi", wait_s=60)
        resumed = await call(
            client, "codex_resume", prompt="hi", thread_id=first["thread_id"], wait_s=60
        )
    assert first["status"] == "completed"
    for result in (stopped, resumed):
        error = result["error"]
        assert (error["kind"], error["retryable"]) == ("not_started", False), error
        assert "hook" in error["hint"]


async def all_at_once(
    ask: Callable[[str], Coroutine[object, object, None]], names: list[str]
) -> None:
    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(ask, name)
