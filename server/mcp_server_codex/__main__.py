"""The console script: no arguments = serve on stdio; a subcommand = the human's commands."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

_USAGE = """\
usage: mcp-server-codex [OPTION]... [-- ROOT...]
                                          serve MCP on stdin and stdout
       mcp-server-codex demo [--live]     see it work: the real Codex, a scripted model
       mcp-server-codex sessions [WORD..] find Codex's threads, or look into one
       mcp-server-codex usage             what Codex used and cost, by day or otherwise
       mcp-server-codex install CLIENT    put it into a client's configuration
       mcp-server-codex uninstall CLIENT  take it out again
       mcp-server-codex doctor            what is wrong with this set-up, and what cures it
       mcp-server-codex --help | --version
"""


def main() -> None:
    """Serve, or run the subcommand that was asked for."""
    arguments = sys.argv[1:]
    if sys.platform == "win32":
        _fail("Windows is not supported yet; run the server inside WSL.")
    if arguments and not arguments[0].startswith("-"):
        sys.exit(_run_command(arguments[0], arguments[1:]))
    if "--help" in arguments or "-h" in arguments:
        _help()
        return
    if "--version" in arguments:
        from importlib.metadata import version

        sys.stdout.write(f"mcp-server-codex {version('mcp-server-codex')}\n")
        return
    _serve(arguments)


def _serve(arguments: list[str]) -> None:
    import gc

    wire = os.dup(1)
    os.dup2(2, 1)  # What any library prints from here on, on import too, is no message.
    # What is imported stays, so looking for garbage meanwhile costs a tenth of the start.
    gc.disable()
    import anyio

    from mcp_server_codex.app import make_server
    from mcp_server_codex.log import log_to_stderr
    from mcp_server_codex.settings import read_settings
    from mcp_server_codex.stdio import serve
    from mcp_server_codex.tracing import start_traces

    settings = read_settings(arguments, os.environ, _fail)
    log_to_stderr(settings.log_level)
    server = make_server(settings)
    end_traces = start_traces(os.environ)
    gc.freeze()
    gc.enable()
    anyio.run(serve, server, wire, end_traces)


def _run_command(name: str, arguments: list[str]) -> int:
    import gc

    gc.disable()  # A command ends before looking for garbage would pay.
    if name == "demo":
        from mcp_server_codex.cli.demo import run_demo

        return run_demo(arguments)
    if name == "doctor":
        from mcp_server_codex.cli.doctor import run_doctor

        return run_doctor(arguments)
    if name == "sessions":
        from mcp_server_codex.cli.sessions import run_sessions

        return run_sessions(arguments)
    if name == "usage":
        from mcp_server_codex.cli.usage import run_usage

        return run_usage(arguments)
    if name == "install":
        from mcp_server_codex.cli.install import run_install

        return run_install(arguments)
    if name == "uninstall":
        from mcp_server_codex.cli.install import run_uninstall

        return run_uninstall(arguments)
    _fail(f"there is no command {name!r}")


def _help() -> None:
    from mcp_server_codex.settings import OPTIONS

    lines = [_USAGE, "options, each with its variable in the environment:"]
    for option in OPTIONS:
        variables = ", ".join(option.variables)
        lines.append(f"  {option.flag} {option.metavar}")
        lines.append(f"      {option.help} [{variables}]")
    sys.stdout.write("\n".join(lines) + "\n")


def _fail(problem: str) -> NoReturn:
    sys.stderr.write(f"mcp-server-codex: {problem}\n{_USAGE}")
    sys.exit(2)


if __name__ == "__main__":
    main()
