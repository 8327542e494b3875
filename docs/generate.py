"""Write the parts of README.md and docs/ that follow from the code.

They stand between `<!-- begin NAME -->` and `<!-- end NAME -->`. Run it by
`make docs`; a test holds what it would write against what is there.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import quote, urlencode

from codex_tools.codex.budget import BudgetExhausted, Limit
from codex_tools.codex.errors import (
    Cancelled,
    CodexError,
    CodexNotFound,
    CodexUnsupported,
    InternalFault,
    Interrupted,
    InvalidArguments,
    InvalidOutputSchema,
    Kind,
    NoAnswer,
    NotAllowed,
    OutputMismatch,
    PromptTooLarge,
    Stalled,
    ThreadBusy,
    ThreadNotFound,
    TimedOut,
    TooDeep,
    TurnFailed,
    WrongThread,
)
from codex_tools.codex.failures import classify, classify_exit, last_words
from codex_tools.codex.masking import shorten
from codex_tools.codex.place_errors import PlaceLost, PlaceUnavailable, ThreadElsewhere
from codex_tools.codex.run_errors import QueueFull, UnknownRun
from codex_tools.codex.turn_result import TurnResult
from codex_tools.runs.applying import ApplyConflict
from codex_tools.runs.result import tell_error
from codex_tools.tool import input_schema
from mcp_server_codex.calls import OLD_TOOLS, TOOLS
from mcp_server_codex.cli.clients.formats import TOML
from mcp_server_codex.cli.clients.known import CLIENTS, NAME, client_named
from mcp_server_codex.settings import OPTIONS
from mcp_server_codex.wire import AnyTool, to_tool
from support.layout import LAYOUT

TOP = Path(__file__).parent.parent
ONE_CLICK = {
    "cursor": "cursor://anysphere.cursor-deeplink/mcp/install",
    "vscode": "https://vscode.dev/redirect/mcp/install",
}
"""The beginning of each client's link; Cursor's configuration is in base64, VS Code's is JSON."""

TOOL_LISTS = TOP / "server" / "mcp_server_codex" / "tools.json"
MESSAGES = TOP / "tests" / "data" / "messages.json"

_NOTHING = TurnResult()
_THREAD = "01a2064e-d936-7f60-b499-d8038e0e5977"


def _said(message: str) -> TurnFailed:
    return TurnFailed(classify(message), _NOTHING)


ERRORS: tuple[CodexError, ...] = (
    InvalidArguments(["unknown argument 'sandbx', did you mean 'sandbox'?"]),
    NotAllowed("sandbox danger-full-access", "at most workspace-write", "--max-sandbox"),
    TooDeep(1, 1),
    PromptTooLarge(1_200_000, 1_000_000),
    CodexNotFound("There is no codex on PATH."),
    CodexUnsupported("--ephemeral", "0.60.1", "Update Codex."),
    _said("401 Unauthorized: Incorrect API key provided"),
    _said("You've hit your usage limit. Try again at 3:05 PM."),
    _said("Rate limit reached. Please try again in 1.2s."),
    _said("We're currently experiencing high demand."),
    _said("stream disconnected before completion: error sending request"),
    _said("Codex ran out of room in the model's context window."),
    _said("The model `gpt-9` does not exist or you do not have access to it."),
    _said("unexpected status 400 Bad Request: invalid_request_error"),
    _said("invalid prompt: flagged as potentially violating our usage policy"),
    _said("Not inside a trusted directory and --skip-git-repo-check was not specified."),
    _said("Error loading config.toml: invalid type: string, expected a boolean"),
    ThreadNotFound(f"There is no thread {_THREAD}."),
    QueueFull(64, 64),
    ThreadBusy(_THREAD),
    WrongThread(_THREAD, "01a2064e-0000-7000-8000-000000000000", _NOTHING),
    InvalidOutputSchema("$.properties.a", "'typ' is no type"),
    OutputMismatch(["$.count: 'three' is not of type 'integer'"], _NOTHING),
    NoAnswer(_NOTHING),
    TimedOut(3600, None, _NOTHING),
    Stalled(600, None, _NOTHING),
    BudgetExhausted(Limit("max_tokens", 50_000), 51_234, _NOTHING),
    Cancelled(_NOTHING),
    Interrupted(),
    UnknownRun("run_44acc0d8142fc700"),
    PlaceUnavailable("build-box", "ssh: connect to host build-box port 22: No route to host"),
    PlaceLost("build-box", "nothing was heard of it for 60 s", _NOTHING),
    ThreadElsewhere("01a22254-72df-7d43-9f90-824e0b0f5f4a", "build-box", "here"),
    ApplyConflict("run_44acc0d8142fc700", "prices.py: both changed the same lines"),
    _said("Something that no version has said yet."),
    TurnFailed(classify_exit(-11, "", None, started=True), _NOTHING),
    TurnFailed(
        classify_exit(1, "Error: Read-only file system (os error 30)", None, started=False),
        _NOTHING,
    ),
    InternalFault(),
)
"""One example of each kind, made by the code that makes the real ones."""


def tools(offered: Iterable[AnyTool] = TOOLS) -> str:
    """Return the tools with their arguments."""
    parts: list[str] = []
    for tool in offered:
        schema = input_schema(tool.request)
        needed = cast("list[str]", schema.get("required", []))
        rows = [
            (f"`{name}`{' *' if name in needed else ''}", _type(about), _about(about))
            for name, about in cast("dict[str, dict[str, Any]]", schema["properties"]).items()
        ]
        parts.append(f"### {tool.name}\n\n{tool.description}\n")
        parts.append(_table(("argument", "type", ""), rows))
    return "\n".join(parts)


def old_tools() -> str:
    """Return the tools of old names."""
    return tools(OLD_TOOLS)


def options() -> str:
    """Return the options with their defaults and variables."""
    rows = [
        (
            f"`{option.flag} {option.metavar}`" + (" (repeatable)" if option.many else ""),
            _default(option.default),
            option.help.removesuffix(".") + ".",
            ", ".join(f"`{variable}`" for variable in option.variables),
        )
        for option in OPTIONS
    ]
    return _table(("option", "default", "", "variable"), rows)


def errors() -> str:
    """Return the kinds of errors, each with an example as a caller gets it."""
    told = [tell_error(error) for error in ERRORS]
    if sorted(each.kind for each in told) != sorted(get_args(Kind)):
        raise SystemExit("ERRORS must hold one example of each kind")
    rows = [
        (f"`{each.kind}`", each.message, each.hint, "yes" if each.retryable else "")
        for each in told
    ]
    return _table(("kind", "for example", "what to do", "worth trying again"), rows)


def messages() -> str:
    """Return the texts of Codex and of programs that start it, each with its kind and hint."""
    rows: list[tuple[str, ...]] = []
    for each in cast("list[dict[str, Any]]", json.loads(MESSAGES.read_text(encoding="utf-8"))):
        said, end = each["said"], each.get("exit")
        if end is None:
            failure, place = classify(said), "event"
        else:
            on_stdout = each["by"] == "stdout"
            failure = classify_exit(
                end,
                "" if on_stdout else said,
                None,
                started=each["started"],
                printed=[said] if on_stdout else [],
            )
            how = f"exit code {end}" if end >= 0 else f"signal {-end}"
            when = " after an event" if each["started"] else ""
            place = f"{each['by']}, {how}{when}"
        again = "yes" if failure.retryable else ""
        shown = _code(shorten(last_words(said), 160))
        rows.append((shown, place, each["source"], f"`{failure.kind}`", again, failure.hint))
    head = ("message", "where", "seen in", "kind", "worth trying again", "what to do")
    return _table(head, rows)


def clients() -> str:
    """Return the clients: their files on Linux, what `install` writes there, and their limits."""
    parts: list[str] = []
    for client in CLIENTS:
        paths = client.config_paths(Path("~"), Path(), {})
        places = ", ".join(f"{scope}: `{path}`" for scope, path in paths.items())
        entry = client.entry("/path/to/mcp-server-codex", [])
        shown = client.format.put("", (*client.key_path, NAME), entry).strip()
        language = "toml" if client.format is TOML else "json"
        parts.append(
            f"## {client.title}\n\n`install {client.name}` ({places})\n\n"
            f"```{language}\n{shown}\n```\n\n{client.limits} {client.note}".strip()
            + "\n"
        )
    return "\n".join(parts)


def one_click() -> str:
    """Return the links with which Cursor and VS Code add this server, as `uvx` starts it."""
    made: list[str] = []
    for name, start in ONE_CLICK.items():
        client = client_named(name)
        # A link is for machines that have the client's program and uv, but not this repository.
        config = json.dumps(client.entry("uvx", ["mcp-server-codex"]), separators=(",", ":"))
        told = b64encode(config.encode()).decode() if name == "cursor" else config
        query = urlencode({"name": NAME, "config": told}, quote_via=quote)
        made.append(f"[{client.title}]({start}?{query})")
    return f"With uv, one click adds the server to {' or '.join(made)}.\n"


def layout() -> str:
    """Return the packages, what each is for, and what it may import."""
    rows: list[tuple[str, str, str]] = []
    for package, allowed in LAYOUT.items():
        root = "server" if package.startswith("mcp_server_codex") else "tools"
        init = TOP / root / Path(*package.split(".")) / "__init__.py"
        about = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        near = f"{package.partition('.')[0]}."
        rows.append(
            (f"`{package}`", about, ", ".join(f"`{each.removeprefix(near)}`" for each in allowed))
        )
    return _table(("package", "", "may import"), rows)


PARTS: dict[str, Callable[[], str]] = {
    "tools": tools,
    "old tools": old_tools,
    "clients": clients,
    "one click": one_click,
    "options": options,
    "errors": errors,
    "messages": messages,
    "layout": layout,
}


def fill(text: str) -> str:
    """Return *text* with all its generated parts made again."""

    def made(found: re.Match[str]) -> str:
        return f"{found[1]}\n{PARTS[found[2]]().strip()}\n{found[3]}"

    pattern = r"(<!-- begin ([a-z ]+) -->)\n.*?(<!-- end \2 -->)"
    return re.sub(pattern, made, text, flags=re.DOTALL)


def pages() -> list[Path]:
    """Return all pages that may have generated parts."""
    return [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def _code(text: str) -> str:
    plain = " ".join(text.split())
    if not plain:
        return "(nothing)"
    return f"`` {plain} ``" if "`" in plain else f"`{plain}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _type(about: dict[str, Any]) -> str:
    if "enum" in about:
        return ", ".join(f"`{each}`" for each in about["enum"])
    if "anyOf" in about:
        return ", or ".join(map(_type, about["anyOf"]))
    kind = str(about.get("type", "any"))
    if kind == "array":
        kind = f"{about['items'].get('type', 'any')}s"
    bounds = [about.get("minimum", about.get("exclusiveMinimum")), about.get("maximum")]
    if bounds[1] is not None:
        return f"{kind}, {bounds[0]} to {bounds[1]}"
    return kind


def _about(about: dict[str, Any]) -> str:
    parts = [str(about["description"]).removesuffix(".") + "."] if "description" in about else []
    if about.get("default") not in (None, False):
        parts.append(f"Default: `{about['default']}`.")
    return " ".join(parts)


def _default(value: object) -> str:
    if value is None or value == ():
        return ""
    if value is False:
        return "`no`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def tool_lists() -> str:
    """Return the file from which the server lists its tools: by the value of --compat."""
    lists = {"none": TOOLS, "codex-mcp-server": OLD_TOOLS}
    entries = {
        name: [
            to_tool(tool).model_dump(mode="json", by_alias=True, exclude_none=True)
            for tool in offered
        ]
        for name, offered in lists.items()
    }
    return json.dumps(entries, ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    """Fill all pages, and write the file of the tools."""
    TOOL_LISTS.write_text(tool_lists(), encoding="utf-8")
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (made := fill(text)) != text:
            page.write_text(made, encoding="utf-8")
            sys.stdout.write(f"{page.relative_to(TOP)}\n")


if __name__ == "__main__":
    main()
