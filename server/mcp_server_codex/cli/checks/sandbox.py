"""Whether Codex's sandbox works on this system, tried with a command that writes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from codex_tools.codex.failures import last_words
from codex_tools.codex.masking import quote
from mcp_server_codex.cli.checks.check import Check, ok, problem, warning
from mcp_server_codex.cli.checks.context import Answer, CheckContext, Codex, ask, room

_TRY = "echo allowed > inside/file && echo wrote; echo refused > outside/file"
_SETTINGS = (
    *("-c", "sandbox_workspace_write.exclude_slash_tmp=true"),
    *("-c", "sandbox_workspace_write.exclude_tmpdir_env_var=true"),
)
"""Else the temp folder, where this takes place, could be written to as well."""

_SYSCTLS = (
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "1"),
    ("/proc/sys/user/max_user_namespaces", "0", "15000"),
)
"""What keeps bubblewrap from its namespaces: a file, the value that does, the one that does not."""

_UNSANDBOXED = "--default-sandbox danger-full-access --max-sandbox danger-full-access"


async def check_sandbox(examination: CheckContext) -> list[Check]:
    """Run a command in the sandbox: it may write in its folder, and only there."""
    codex = examination.codex
    assert codex is not None
    with room() as folder:
        for name in ("home", "work", "work/inside", "outside"):
            (folder / name).mkdir()
        (folder / "work" / "outside").symlink_to(folder / "outside")
        # With a configuration of its own: the person's may widen the sandbox on purpose.
        env = examination.codex_environment | {"CODEX_HOME": str(folder / "home")}
        start = await _command(codex, env, folder)
        answer = await ask(
            codex.program.path, *start, "/bin/sh", "-c", _TRY, env=env, cwd=folder / "work"
        )
        wrote = (folder / "work" / "inside" / "file").exists()
        escaped = (folder / "outside" / "file").exists()
    examination.sandbox_holds = wrote and not escaped
    free = examination.settings.policy.default_sandbox == "danger-full-access"
    return [_finding(codex, answer, wrote=wrote, escaped=escaped, free=free)]


async def _command(codex: Codex, env: dict[str, str], folder: Path) -> list[str]:
    """Return how this version is told to run a command in the sandbox."""
    help_ = await ask(codex.program.path, "sandbox", "--help", env=env, cwd=folder)
    system = "macos" if sys.platform == "darwin" else "linux"
    # Up to some version after 0.120, the system was named; 0.163 takes that for the program.
    if any(line.split()[:1] == [system] for line in help_.stdout.splitlines()):
        return ["sandbox", system, "--full-auto", *_SETTINGS, "--"]
    return ["sandbox", "-c", 'sandbox_mode="workspace-write"', *_SETTINGS, "--"]


def _finding(codex: Codex, answer: Answer, *, wrote: bool, escaped: bool, free: bool) -> Check:
    said = quote(last_words(answer.stderr), 300) or "Codex says nothing"
    about = {"exit_code": answer.returncode, "said": said}
    if wrote and not escaped:
        return ok("sandbox", "In the sandbox a command can write in its folder, and only there.")
    if escaped:
        message = "Codex's sandbox does not hold: a command wrote outside of its folder."
        return problem("sandbox", message, _cure(codex, said), **about)
    if answer.returncode is None:
        message = "A command in Codex's sandbox does not begin or end: it had to be ended."
        return problem("sandbox", message, codex.update, **about)
    message = "Codex's sandbox does not work here: a command could not write in its folder"
    message += f" (exit code {answer.returncode}: {said})."
    if free:
        return warning(
            "sandbox", f"{message} Runs here are not sandboxed.", _cure(codex, said), **about
        )
    return problem("sandbox", message, _cure(codex, said), **about)


def _cure(codex: Codex, said: str) -> str:
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
            " apparmor=unconfined; or, where the container itself is wall enough, let the server"
            f" run Codex without a sandbox: {_UNSANDBOXED}"
        )
    if "landlock" in said.lower():
        return f"{codex.update} (before 0.120, Codex needs Landlock in the kernel)"
    return (
        "Try it by hand: codex sandbox --help; where the machine itself is wall enough, let the"
        f" server run Codex without a sandbox: {_UNSANDBOXED}"
    )


def _is_container() -> bool:
    # So called, in small letters, by systemd-nspawn and podman, which set it.
    if "container" in os.environ:
        return True
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        return True
    try:
        groups = Path("/proc/1/cgroup").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(word in groups for word in ("docker", "kubepods", "containerd", "lxc"))
