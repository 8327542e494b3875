"""Console script: serve MCP on stdio, or run a subcommand such as `doctor` or `install`."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn, cast

_USAGE = """\
usage: mcp-server-codex [OPTION]... [-- ROOT...]
                                          serve MCP on stdin and stdout
       mcp-server-codex demo [--live]     show an example: the real Codex, a scripted model
       mcp-server-codex runs              list the runs of all servers, the newest first
       mcp-server-codex watch             the same, live, until Ctrl-C
       mcp-server-codex show RUN          show a run's result, its changes and its events
       mcp-server-codex stop RUN          stop a run, also one of another process
       mcp-server-codex apply RUN         write an isolated run's changes into its folder
       mcp-server-codex discard RUN       delete an isolated run's copy and its changes
       mcp-server-codex sessions [WORD..] find Codex's threads, or show one of them
       mcp-server-codex usage             show Codex's tokens and cost by day, model or folder
       mcp-server-codex install [CLIENT]  add this server to a client, or list the clients
       mcp-server-codex uninstall CLIENT  remove this server from a client's configuration
       mcp-server-codex uninstall --state delete what this server keeps on disk
       mcp-server-codex worker            run turns for a server on another machine
       mcp-server-codex doctor            check this setup, and print how to fix each problem
       mcp-server-codex completion SHELL  print completions for bash, zsh or fish
       mcp-server-codex --help | --version
"""


def main() -> None:
    """Serve MCP, or run the subcommand that the command line names."""
    arguments = sys.argv[1:]
    if sys.platform == "win32":
        _fail("Windows is not supported yet; run the server inside WSL.")
    if arguments and not arguments[0].startswith("-"):
        sys.exit(_run_command(arguments[0], arguments[1:]))
    if "--help" in arguments or "-h" in arguments:
        _help()
        return
    if "--version" in arguments or "-V" in arguments:
        from importlib.metadata import version

        sys.stdout.write(f"mcp-server-codex {version('mcp-server-codex')}\n")
        return
    _serve(arguments)


def _serve(arguments: list[str]) -> None:
    import gc

    _ensure_utf8()
    if sys.stdin.isatty():
        sys.stderr.write("Waiting for an MCP client on stdin; Ctrl-D ends. See also: --help.\n")
    wire = os.dup(1)
    # Stdout carries MCP messages only. What a library prints, even on import, goes to stderr.
    os.dup2(2, 1)
    # Imported modules stay in memory. Collecting garbage during imports costs a tenth of the start.
    gc.disable()
    import anyio

    from mcp_server_codex.kept_code import keep_code

    keep_code()
    from codex_tools.engines.orphans import hide_memory
    from mcp_server_codex.app import make_server
    from mcp_server_codex.log import log_to_stderr
    from mcp_server_codex.settings import check_places, read_settings
    from mcp_server_codex.stdio import serve
    from mcp_server_codex.tracing import start_traces

    settings = read_settings(arguments, os.environ, _fail)
    check_places(settings, _fail)
    log_to_stderr(settings.log_level)
    hide_memory()
    server = make_server(settings)
    end_traces = start_traces(os.environ)
    gc.freeze()
    gc.enable()
    anyio.run(serve, server, wire, end_traces)


def _ensure_utf8() -> None:
    """Start the interpreter again in UTF-8 mode if this one uses another encoding for paths.

    MCP and Codex write paths in UTF-8, whatever the locale is; with zh_CN.GBK or de_DE.ISO-8859-1
    this process could not find them. The mode is an option and not PYTHONUTF8, so that Codex's
    commands inherit the locale of the person and nothing else. With a UTF-8 locale, or none,
    Python needs no second start, which takes 20 ms.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _run_command(name: str, arguments: list[str]) -> int:
    import gc

    gc.disable()  # A command ends before garbage collection would pay off.
    out: object = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        # What the encoding of the output lacks, such as bars, becomes "?" instead of a traceback.
        cast("io.TextIOWrapper[io.BufferedWriter]", out).reconfigure(errors="replace")
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
    if name == "runs":
        from mcp_server_codex.cli.runs import run_runs

        return run_runs(arguments)
    if name == "watch":
        from mcp_server_codex.cli.watch import run_watch

        return run_watch(arguments)
    if name == "show":
        from mcp_server_codex.cli.show import run_show

        return run_show(arguments)
    if name == "stop":
        from mcp_server_codex.cli.stop import run_stop

        return run_stop(arguments)
    if name == "apply":
        from mcp_server_codex.cli.apply import run_apply

        return run_apply(arguments)
    if name == "discard":
        from mcp_server_codex.cli.apply import run_discard

        return run_discard(arguments)
    if name == "worker":
        from mcp_server_codex.cli.worker import run_worker

        run_worker(arguments)
    if name == "install":
        from mcp_server_codex.cli.install import run_install

        return run_install(arguments)
    if name == "uninstall":
        from mcp_server_codex.cli.install import run_uninstall

        return run_uninstall(arguments)
    import difflib
    import re

    known = re.findall(r"mcp-server-codex ([a-z]+)", _USAGE)
    if name == "completion":
        from mcp_server_codex.cli.completion import run_completion

        return run_completion(arguments, known, _run_command)
    alike = difflib.get_close_matches(name, known, n=1)
    _fail(f"unknown command {name!r}" + (f"; did you mean {alike[0]!r}?" if alike else ""))


def _help() -> None:
    from mcp_server_codex.settings import OPTIONS

    lines = [_USAGE, "options, each with its environment variable in brackets:"]
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
