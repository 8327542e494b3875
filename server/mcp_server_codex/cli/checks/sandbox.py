"""Check that Codex's sandbox works on this system, with a command that writes files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from codex_tools.codex.failures import last_words
from codex_tools.codex.masking import quote
from mcp_server_codex.cli.checks.check import Check, ok, problem, warning
from mcp_server_codex.cli.checks.context import (
    WITHIN_LIMITS,
    Answer,
    CheckContext,
    Codex,
    ask,
    temporary_folder,
)

_TRY = "echo allowed > inside/file && echo wrote; echo refused > outside/file"
_SETTINGS = (
    *("-c", "sandbox_workspace_write.exclude_slash_tmp=true"),
    *("-c", "sandbox_workspace_write.exclude_tmpdir_env_var=true"),
)
"""Keeps the temporary folder, where the check runs, from being writable as a whole."""

_SYSCTLS = (
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "1"),
    ("/proc/sys/user/max_user_namespaces", "0", "15000"),
)
"""Kernel settings that can deny bubblewrap its namespaces: file, denying value, allowing value."""

_UNSANDBOXED = "--default-sandbox danger-full-access --max-sandbox danger-full-access"


async def check_sandbox(context: CheckContext) -> list[Check]:
    """Run a command in the sandbox; it must be able to write in its folder and only there."""
    codex = context.codex
    assert codex is not None
    with temporary_folder() as folder:
        for name in ("home", "work", "work/inside", "outside"):
            (folder / name).mkdir()
        (folder / "work" / "outside").symlink_to(folder / "outside")
        # The check uses its own configuration: the person's may widen the sandbox on purpose.
        env = context.codex_environment | {"CODEX_HOME": str(folder / "home")}
        start = await _command(codex, env, folder)
        answer = await ask(
            codex.program.path, *start, "/bin/sh", "-c", _TRY, env=env, cwd=folder / "work"
        )
        wrote = (folder / "work" / "inside" / "file").exists()
        escaped = (folder / "outside" / "file").exists()
    context.sandbox_holds = wrote and not escaped
    unused = context.settings.policy.default_sandbox == "danger-full-access"
    return [_finding(codex, answer, wrote=wrote, escaped=escaped, unused=unused)]


async def _command(codex: Codex, env: dict[str, str], folder: Path) -> list[str]:
    """Return the arguments with which this Codex version runs a command in the sandbox."""
    help_ = await ask(codex.program.path, "sandbox", "--help", env=env, cwd=folder)
    system = "macos" if sys.platform == "darwin" else "linux"
    # Up to some version after 0.120, the first argument names the system. 0.163 takes that
    # argument for the program to run.
    if any(line.split()[:1] == [system] for line in help_.stdout.splitlines()):
        return ["sandbox", system, "--full-auto", *_SETTINGS, "--"]
    return ["sandbox", "-c", 'sandbox_mode="workspace-write"', *_SETTINGS, "--"]


def _finding(codex: Codex, answer: Answer, *, wrote: bool, escaped: bool, unused: bool) -> Check:
    output = quote(last_words(answer.stderr), 300) or "no output"
    about = {"exit_code": answer.returncode, "said": output}
    if wrote and not escaped:
        return ok(
            "sandbox", "A command in Codex's sandbox can write in its own folder and only there."
        )
    if escaped:
        message = "Codex's sandbox gives no protection: a command wrote outside of its folder."
        return problem("sandbox", message, _cure(codex, output), **about)
    if answer.returncode is None:
        message = f"A command in Codex's sandbox did not end {WITHIN_LIMITS} and was stopped."
        return problem("sandbox", message, codex.update, **about)
    message = "Codex's sandbox does not work here: a command could not write in its folder"
    message += f" (exit code {answer.returncode}: {output})."
    if unused:
        return warning(
            "sandbox",
            f"{message} Runs do not use it by default: --default-sandbox is danger-full-access.",
            _cure(codex, output),
            **about,
        )
    return problem("sandbox", message, _cure(codex, output), **about)


def _cure(codex: Codex, output: str) -> str:
    for file, bad, good in _SYSCTLS:
        try:
            value = Path(file).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if value == bad:
            name = file.removeprefix("/proc/sys/").replace("/", ".")
            return f"sudo sysctl -w {name}={good}"
    if _is_container():
        return (
            "Start the container with --security-opt seccomp=unconfined --security-opt"
            " apparmor=unconfined. Or, if the container itself isolates enough, start this server"
            f" with {_UNSANDBOXED}"
        )
    if "landlock" in output.lower():
        return f"{codex.update} (before 0.120, Codex needs Landlock in the kernel)"
    return (
        "Try the sandbox by hand, see: codex sandbox --help. Or, if the machine itself isolates"
        f" enough, start this server with {_UNSANDBOXED}"
    )


def _is_container() -> bool:
    # systemd-nspawn and podman set this variable, in small letters.
    if "container" in os.environ:
        return True
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        return True
    try:
        groups = Path("/proc/1/cgroup").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(word in groups for word in ("docker", "kubepods", "containerd", "lxc"))
