"""The commands print the results of the tools and import nothing that they do not need."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from codex_tools.usage import USAGE as TOOL
from codex_tools.usage import UsageResult
from mcp_server_codex.cli.command import short
from mcp_server_codex.cli.sessions import arguments_of
from mcp_server_codex.cli.usage import MODELS, USAGE
from support.lab import server_program
from support.synthetic_home import make_home

NAME = "mcp-server-codex"
SLOW = ("pydantic", "rich", "anyio", "asyncio", "mcp", "genai_prices", "importlib.metadata")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    make_home(home, sessions=12, days=20, seed=3, turns=2, output_kb=0.2)
    return home


def run(home: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    # The cache of prices must not be the one of the person who runs the tests.
    own = {"CODEX_HOME": str(home), "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environ = os.environ | own | {"TZ": "UTC"}
    return subprocess.run(command, env=environ, capture_output=True, text=True)


def run_usage(home: Path, state: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(home, server_program(), "usage", "--state-dir", state, *options)


def test_usage_has_the_arguments_of_the_tool_in_the_same_words() -> None:
    assert USAGE.arguments == (*arguments_of(TOOL), MODELS)
    assert USAGE.about == TOOL.description


@pytest.mark.parametrize("group_by", ["day", "week", "month", "model", "cwd", "thread", "place"])
def test_usage_prints_the_tool_s_structured_result(
    home: Path, tmp_path: Path, group_by: str
) -> None:
    done = run_usage(home, tmp_path, "--json", "--group-by", group_by)
    found = json.loads(done.stdout)
    assert found["totals"]["requests"] > 0
    assert found["groups"]
    result = UsageResult.model_validate(found)
    whole = json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False)
    assert done.stdout == whole + "\n"


def test_usage_is_a_table_for_a_person(home: Path, tmp_path: Path) -> None:
    done = run_usage(home, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "total" in done.stdout
    assert "Recorded usage, not a bill." in done.stdout


def test_usage_shows_the_known_cost_first_and_each_bucket_of_rate_limits(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "sessions" / "2026" / "09" / "02"
    folder.mkdir(parents=True)
    buckets: tuple[tuple[str, str, str | None, float], ...] = (
        ("gpt-5.5", "codex", None, 76),
        ("gpt-5.3-codex-spark", "codex_bengalfox", "GPT-5.3-Codex-Spark", 12),
        ("gpt-5.3-codex-spark", f"other{EVIL}", f"Other{EVIL}", 13),
    )
    for number, (model, limit_id, name, percent) in enumerate(buckets):
        thread = f"01a20300-0000-7000-8000-00000000030{number}"
        counts = {"input_tokens": 100_000, "cached_input_tokens": 0, "output_tokens": 0}
        counts |= {"reasoning_output_tokens": 0, "total_tokens": 100_000}
        window = {"used_percent": percent, "window_minutes": 300, "resets_at": 4102444800}
        told: dict[str, object] = {"limit_id": limit_id, "limit_name": name, "primary": window}
        told |= {"secondary": None, "credits": None}
        usage = {"total_token_usage": counts, "last_token_usage": counts}
        payloads: list[tuple[str, dict[str, object]]] = [
            ("session_meta", {"id": thread, "cwd": "/p", "source": "exec"}),
            ("turn_context", {"cwd": "/p", "model": model}),
            ("event_msg", {"type": "token_count", "info": usage, "rate_limits": told}),
        ]
        lines = (
            json.dumps({"timestamp": "2026-09-02T10:00:00.000Z", "type": kind, "payload": payload})
            for kind, payload in payloads
        )
        path = folder / f"rollout-2026-09-02T10-00-00-{thread}.jsonl"
        path.write_text("".join(line + "\n" for line in lines))
    shown = run_usage(tmp_path / "home", tmp_path / "state").stdout
    text = " ".join(shown.split())
    in_order = (
        "≥ $0.50",
        "Note: Cost: at least $0.50; no price for gpt-5.3-codex-spark.",
        "Rate limits, ",
        "76 % of 5 h used",
    )
    places = [text.index(each) for each in in_order]
    assert places == sorted(places)
    spark = text.index("Rate limits of GPT-5.3-Codex-Spark, ")
    assert text.index("12 % of 5 h used") > spark > places[-1]
    assert "Rate limits of Other" in text
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--since", "soon"), "'soon' is not a date or time"),
        (("--timezone", "Mars/Crater"), "'Mars/Crater' is not an IANA time zone"),
        (("--group-by", "hour"), "invalid choice: 'hour'"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_what_makes_no_sense_is_refused(
    home: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    done = run_usage(home, tmp_path, "--json", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_usage_as_json_imports_nothing_slow(home: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from mcp_server_codex.cli.usage import run_usage;"
        " code = run_usage(['--json', '--state-dir', sys.argv[1]]);"
        " print(*sys.modules, sep='\\n', file=sys.stderr); sys.exit(code)"
    )
    assert run_usage(home, tmp_path / "first", "--json").returncode == 0  # Caches the prices.
    done = run(home, sys.executable, "-c", code, tmp_path / "second")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["totals"]["requests"] > 0
    assert set(done.stderr.split()).isdisjoint(SLOW), done.stderr


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200, None])
@pytest.mark.parametrize("group_by", ["day", "model", "cwd", "thread", "place"])
def test_no_width_cuts_a_figure_or_a_heading_of_usage(
    home: Path, tmp_path: Path, group_by: str, width: int | None
) -> None:
    words = ("usage", "--group-by", group_by, "--state-dir", str(tmp_path))
    env = ["env", "TERM=xterm", *(() if width is None else ("FORCE_COLOR=1", f"COLUMNS={width}"))]
    groups = json.loads(run_usage(home, tmp_path, "--group-by", group_by, "--json").stdout)[
        "groups"
    ]
    printed = run(home, *env, server_program(), *words).stdout
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    assert "…" not in text
    shown = re.sub(r"\s", "", text)
    for group in groups:
        assert f"${group['cost_usd_known']:,.2f}" in text
        assert group["key"] in shown or width in (40, 60)
    headings = ["requests", "input", "cached", "output", "total", "cost"]
    left_out = re.search(r"No room for: ([a-z, ]+)", " ".join(text.split()))
    missing = left_out[1].split(", ") if left_out is not None else []
    heading = next(line for line in text.split("\n") if "cost" in line)
    assert heading.split() == [name for name in headings if name not in missing]
    if width is None:
        assert missing == []
        assert "█" in text
    else:
        assert all(len(line) <= width for line in text.split("\n"))
    if missing:
        assert "█" not in text


@pytest.mark.parametrize(("width", "missing"), [(60, 3), (80, 0), (200, 0), (None, 0)])
def test_no_width_cuts_an_id_a_date_or_a_figure_of_sessions(
    home: Path, tmp_path: Path, width: int | None, missing: int
) -> None:
    words = ("sessions", "--state-dir", str(tmp_path))
    env = ["env", "TERM=xterm", *(() if width is None else ("FORCE_COLOR=1", f"COLUMNS={width}"))]
    found = json.loads(run(home, server_program(), *words, "--json").stdout)["sessions"]
    printed = run(home, *env, server_program(), *words).stdout
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    assert "…" not in text
    for session in found:
        assert session["thread_id"] in text
        assert session["last_active_at"][:16].replace("T", " ") in text
        if not missing:
            assert f"${session['cost_usd']:,.2f}" in text
    names = ["turns", "tokens", "cost"]
    assert f"No room for: {', '.join(names)}." in text if missing else "No room" not in text
    if width is not None:
        assert all(len(line) <= width for line in text.split("\n"))


def test_csv_has_a_line_for_each_group_and_each_thread(home: Path, tmp_path: Path) -> None:
    groups = json.loads(run_usage(home, tmp_path, "--json").stdout)["groups"]
    rows = list(csv.DictReader(run_usage(home, tmp_path, "--csv").stdout.splitlines()))
    assert [row["key"] for row in rows] == [group["key"] for group in groups]
    assert [int(row["total_tokens"]) for row in rows] == [g["total_tokens"] for g in groups]
    words = (server_program(), "sessions", "--state-dir", tmp_path)
    sessions = json.loads(run(home, *words, "--json").stdout)["sessions"]
    lines = list(csv.DictReader(run(home, *words, "--csv").stdout.splitlines()))
    used = [str(session["usage"]["total_tokens"]) for session in sessions]
    assert [line["usage.total_tokens"] for line in lines] == used
    assert run_usage(home, tmp_path, "--csv", "--since", "2099-01-01").stdout == ""


EVIL = (
    "\x1b]0;owned\x07\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b]8;;http://evil\x07\x9b2J\x9d0;x\x9c"
    "\u202ecod\u2066\u200b\u2028\u2029[/dim][bold]m[/x]:smile:\\" + "a" + "\u0301" * 200
)
"""Sequences that a terminal obeys, text that forges or disguises, and markup of rich."""


@pytest.fixture(scope="module")
def evil_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose only thread has hostile text wherever a rollout holds text."""
    home = tmp_path_factory.mktemp("evil")
    folder = home / "sessions" / "2026" / "11" / "20"
    folder.mkdir(parents=True)
    git = {"branch": f"branch\n{EVIL}", "commit_hash": "a" * 40}
    meta: dict[str, object] = {"id": EVIL_ID, "cwd": f"/work\n{EVIL}", "source": "exec"}
    meta |= {"git": git, "cli_version": f"0.171.0{EVIL}", "originator": EVIL}
    counts = {"input_tokens": 10, "cached_input_tokens": 0, "output_tokens": 5, "total_tokens": 15}
    counts["reasoning_output_tokens"] = 0
    usage = {"total_token_usage": counts, "last_token_usage": counts}
    context: dict[str, object] = {"cwd": f"/work\n{EVIL}", "model": f"m{EVIL}"}
    context["sandbox_policy"] = {"type": EVIL}
    payloads: list[tuple[str, dict[str, object]]] = [
        ("session_meta", meta),
        ("turn_context", context),
        ("event_msg", {"type": "user_message", "message": f"prompt {EVIL}\n## Turn 7 · forged"}),
        ("event_msg", {"type": "agent_message", "message": f"{EVIL}\n## Turn 9 · forged\n> x"}),
        ("event_msg", {"type": "token_count", "info": usage}),
        ("event_msg", {"type": "error", "message": f"failed {EVIL}\n## Turn 8"}),
    ]
    lines = (
        json.dumps({"timestamp": "2026-11-20T10:00:00.000Z", "type": kind, "payload": payload})
        for kind, payload in payloads
    )
    file = folder / f"rollout-2026-11-20T10-00-00-{EVIL_ID}.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines))
    return home


EVIL_ID = "01a20661-b445-73e1-b566-c552cde98ccd"


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize(
    "command",
    [
        ("sessions",),
        ("sessions", "--thread-id", EVIL_ID),
        *(("usage", "--group-by", kind) for kind in ("model", "cwd", "thread", "day")),
        ("sessions", "--json"),
        ("sessions", "--thread-id", EVIL_ID, "--json"),
        ("usage", "--group-by", "model", "--json"),
        ("sessions", "--csv"),
        ("usage", "--group-by", "cwd", "--csv"),
        ("sessions", "--thread-id", f"no {EVIL}"),
        ("usage", "--timezone", f"no {EVIL}"),
    ],
)
def test_no_text_of_a_thread_controls_the_terminal(
    evil_home: Path, tmp_path: Path, command: tuple[str, ...], colour: bool
) -> None:
    words = [server_program(), *command, "--state-dir", str(tmp_path)]
    env = ["env", "TERM=xterm-256color", *(["FORCE_COLOR=1"] if colour else [])]
    done = run(evil_home, *env, *words)
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed
    refused = command[-1].startswith("no ")
    assert (done.returncode == 0) is not refused
    own = re.sub(r"\x1b\[[0-9;]*m", "", printed)  # The colours of rich.
    assert [letter for letter in own if not letter.isprintable() and letter != "\n"] == []
    if "--json" in command:
        json.loads(done.stdout)
    elif "--csv" in command:
        assert len(done.stdout.split("\n")) == 3
    elif not refused and command[-1] not in ("day", "thread"):
        assert "m[/x]:smile:" in re.sub(r"\s", "", own) or "…" in own
    if "--thread-id" in command and not refused and "--json" not in command:
        assert not [line for line in own.split("\n") if line.startswith("## ")]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("usag", "unknown command 'usag'; did you mean 'usage'?"),
        ("sesions", "unknown command 'sesions'; did you mean 'sessions'?"),
        ("frobnicate", "unknown command 'frobnicate'"),
    ],
)
def test_a_mistyped_command_is_told_with_the_one_that_is_alike(
    home: Path, word: str, says: str
) -> None:
    done = run(home, server_program(), word)
    assert done.returncode == 2
    assert f"mcp-server-codex: {says}" in done.stderr.split("\n")


def test_the_version_has_a_short_option(home: Path) -> None:
    assert run(home, server_program(), "-V").stdout == f"mcp-server-codex {version(NAME)}\n"


def test_a_server_that_a_person_starts_says_what_it_waits_for(home: Path, tmp_path: Path) -> None:
    primary, terminal = pty.openpty()
    environ = os.environ | {"CODEX_HOME": str(home)}
    command = [server_program(), "--state-dir", str(tmp_path)]
    with subprocess.Popen(
        command, env=environ, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as server:
        os.close(terminal)
        assert server.stderr is not None
        assert server.stderr.readline().startswith(b"Waiting for an MCP client on stdin")
        os.close(primary)
        out, _ = server.communicate(timeout=60)
    assert out == b""
    assert server.returncode == 0


def test_the_models_of_each_day_add_up_to_the_day(home: Path, tmp_path: Path) -> None:
    found = json.loads(run_usage(home, tmp_path, "--json", "--models").stdout)
    plain = json.loads(run_usage(home, tmp_path, "--json").stdout)
    assert [{k: v for k, v in group.items() if k != "models"} for group in found["groups"]] == (
        plain["groups"]
    )
    names: set[str] = set()
    for group in found["groups"]:
        names |= {part["key"] for part in group["models"]}
        for figure in ("total_tokens", "requests", "input_tokens"):
            assert sum(part[figure] for part in group["models"]) == group[figure]
    assert len(names) > 1
    shown = run_usage(home, tmp_path, "--models").stdout
    first = found["groups"][0]
    lines = [line.split() for line in shown.splitlines()]
    at = next(i for i, words in enumerate(lines) if words[:1] == [first["key"]])
    assert lines[at + 1][0] in {part["key"] for part in first["models"]}
    rows = [*csv.DictReader(run_usage(home, tmp_path, "--models", "--csv").stdout.splitlines())]
    assert {row["model"] for row in rows} == names
    assert [*rows[0]][:2] == ["key", "model"]


@pytest.mark.parametrize("command", [("usage",), ("sessions",), ("--help",), ("doctor", "--help")])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_is_not_utf_8_loses_characters_and_nothing_else(
    home: Path, tmp_path: Path, command: tuple[str, ...], encoding: str
) -> None:
    environ = os.environ | {"CODEX_HOME": str(home), "PYTHONIOENCODING": encoding, "TZ": "UTC"}
    environ |= {"FORCE_COLOR": "1", "COLUMNS": "120", "MCP_SERVER_CODEX_STATE_DIR": str(tmp_path)}
    done = subprocess.run([server_program(), *command], env=environ, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout
    if command == ("usage",):
        assert b"####" in done.stdout


def test_an_error_at_the_shell_names_commands_and_options(home: Path, tmp_path: Path) -> None:
    state = ("--state-dir", tmp_path)
    done = run(home, server_program(), "sessions", "--thread-id", "gone", *state)
    assert "`mcp-server-codex sessions`" in done.stderr
    assert "codex_" not in done.stderr
    done = run(home, server_program(), "sessions", "--limit", "999", *state)
    assert done.stderr.startswith("mcp-server-codex sessions: --limit: ")


def test_each_command_has_help_in_words_of_the_shell(home: Path) -> None:
    said = run(home, server_program(), "--help").stdout
    for name in dict.fromkeys(re.findall(r"mcp-server-codex ([a-z]+)", said)):
        done = run(home, server_program(), name, "--help")
        assert (done.returncode, done.stderr) == (0, ""), name
        assert f"usage: mcp-server-codex {name}" in done.stdout
        assert not re.search(r"\bcodex_(?!apply_|bin)[a-z]+|thread_id|group_by", done.stdout), name
        usage = done.stdout.partition("\n\n")[0]
        assert not re.search(r"--paths X|--branch BRANCH|\[query|\brun$", usage), usage
        assert "--cursor of" not in done.stdout


def test_counts_have_three_digits_so_that_their_columns_line_up() -> None:
    shown = {
        **{0: "0", 987: "987", 999_500: "1.00M", 1_000: "1.00K", 12_340: "12.3K", 99_960: "100K"},
        **{
            32_000_000: "32.0M",
            1_100_000_000: "1.10G",
            999_400: "999K",
            3_210_000_000_000: "3210G",
        },
    }
    assert {count: short(count) for count in shown} == shown
