"""The real Claude Code as a client, headless; its model is scripted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import anyio.to_thread

from mcp_server_codex.cli.scripted_model import Shell, do, say
from support.codex_versions import from_npm
from support.lab import Json, Lab, commands, environment, marked, server_program, until
from support.scripted_messages import ScriptedMessages, Use

CLAUDE_CODE = "2.1.332"
"""The version that the tests fetch. It needs no Node, nor an account."""

MOST_SHOWN = 4096
"""Characters of a description, or of instructions, that Claude Code shows to its model."""

_WITHIN_S = 300.0

_SLEEP, _SLEEPERS = "(setsid sleep 602 &); sleep 600", {"sleep 600", "sleep 602"}


@cache
def claude_code() -> Path:
    """Return the program, from npm."""
    folder = from_npm(f"npm/claude-code-{CLAUDE_CODE}", f"@anthropic-ai/claude-code@{CLAUDE_CODE}")
    return folder / "node_modules" / ".bin" / "claude"


@dataclass(frozen=True, slots=True)
class ClaudeCode:
    """Claude Code in a lab, with this server among its own."""

    lab: Lab
    model: ScriptedMessages
    mode: str = "auto"
    """The era of the protocol that it opens with."""

    def add_server(self, codex: Path, *options: str) -> None:
        """Name this server "codex", as `claude mcp add` would."""
        args = ["--codex-bin", str(codex), "--state-dir", str(self.lab.state), *options]
        entry = {"type": "stdio", "command": server_program(), "args": args}
        self._servers.write_text(json.dumps({"mcpServers": {"codex": entry}}))

    def hook(self, event: str, command: str) -> None:
        """Let *command* run at each *event*, as a person's settings would say."""
        settings = {"hooks": {event: [{"hooks": [{"type": "command", "command": command}]}]}}
        folder = self.lab.root / ".claude"
        folder.mkdir(exist_ok=True)
        (folder / "settings.json").write_text(json.dumps(settings))

    def ask(self, prompt: str, *options: str, mark: str = "", **env: str) -> list[Json]:
        """Let it answer *prompt* and end; return what it printed, line by line."""
        with self.start(prompt, *options, mark=mark, **env) as process:
            try:
                out, err = process.communicate(timeout=_WITHIN_S)
            finally:
                process.kill()
        assert process.returncode == 0, (out, err)
        return [cast("Json", json.loads(line)) for line in out.splitlines()]

    def start(
        self, prompt: str, *options: str, mark: str = "", **env: str
    ) -> subprocess.Popen[bytes]:
        """Start it on *prompt*, with *mark* in the environment of all that it starts."""
        servers = ("--mcp-config", str(self._servers), "--strict-mcp-config")
        return subprocess.Popen(
            [
                *(str(claude_code()), "-p", prompt, "--output-format", "stream-json", "--verbose"),
                *("--debug-file", str(self._log), "--allowedTools", "mcp__codex", "--tools", ""),
                *(options or servers),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.lab.project,
            env=self._environment() | {"FAR_END": mark} | env,
        )

    async def end_in_mid_run(
        self, tool: str, number: signal.Signals, *options: str, **env: str
    ) -> None:
        """Send it the signal *number* while Codex runs a command for *tool*.

        Returns when nothing is left that it has started; fails if something stays.
        """
        mark = f"claude-{uuid.uuid4()}"
        prompt = self.lab.script("sleep", do(Shell(_SLEEP)), say("never said"))
        self.model.steps = (Use(tool, {"prompt": prompt}), "never said")
        with self.start("Go.", *options, mark=mark, **env) as process:
            try:
                await until(lambda: {*commands(mark)} >= _SLEEPERS)
                for parts in (
                    ("mcp-server-codex",),
                    ("/guard.",),
                    ("codex exec", "codex app-server"),
                ):
                    found = [each for each in commands(mark) if any(part in each for part in parts)]
                    assert found, parts
                process.send_signal(number)
                await anyio.to_thread.run_sync(process.communicate)
                await until(lambda: commands(mark) == [])
            finally:
                for pid in marked(mark):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    @property
    def spoke_as_asked(self) -> bool:
        """Whether it spoke the protocol of its mode, as it noted itself.

        On a busy machine it may give up the newer one, after 3 s without an answer.
        """
        log = self._log.read_text()
        gave_up = "probe timed out" in log
        return ('"protocolEra":"modern"' in log) is (self.mode == "auto") or gave_up

    @property
    def _servers(self) -> Path:
        return self.lab.root / "mcp.json"

    @property
    def _log(self) -> Path:
        return self.lab.root / "claude.log"

    def _environment(self) -> dict[str, str]:
        # Without the last one, Claude Code shows its model the names of tools and no more.
        alone = (
            *("DISABLE_TELEMETRY", "DISABLE_AUTOUPDATER", "DISABLE_ERROR_REPORTING"),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
        )
        era = {"MCP_PROTOCOL_NEGOTIATION": "legacy"} if self.mode == "legacy" else {}
        # Else it begins without a server that is slow to start; a plugin's, sooner than others.
        patience = dict.fromkeys(("MCP_TIMEOUT", "CLAUDE_CODE_MCP_STARTUP_WAIT_MS"), "120000")
        return {
            **environment(self.lab),
            **dict.fromkeys(alone, "1"),
            **era,
            **patience,
            "ANTHROPIC_BASE_URL": self.model.base_url,
            "ANTHROPIC_API_KEY": "sk-scripted",
            "TMPDIR": str(self.lab.root),
            "CLAUDE_CODE_TMPDIR": str(self.lab.root),
            "TERM": "dumb",
            "ENABLE_TOOL_SEARCH": "false",
        }
