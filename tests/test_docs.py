"""The README and docs/ say what the code does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest

import clients
import compat
import generate
import kills
from codex_tools.runs.result import RunResult
from mcp_server_codex.calls import TOOLS
from mcp_server_codex.cli.checks.codex import NEWEST_TESTED
from mcp_server_codex.prompts import PROMPTS
from mcp_server_codex.resources import TEMPLATES
from mcp_server_codex.settings import OPTIONS
from support import real_clients
from support.lab import server_program

TOP = Path(__file__).parent.parent
PAGES = generate.pages()

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_generated_parts_are_as_generated(page: Path) -> None:
    if page.name == "clients.md" and sys.platform == "darwin":
        pytest.skip("it names the files of Linux")
    text = page.read_text()
    assert generate.fill(text) == text, "run `make docs`"
    assert text.count("<!-- begin ") == text.count("<!-- end ")


def test_the_listed_tools_are_those_of_the_code() -> None:
    assert generate.TOOL_LISTS.read_text() == generate.tool_lists(), "run `make docs`"


def test_every_generated_part_stands_somewhere() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for name in generate.PARTS:
        assert f"<!-- begin {name} -->" in text, name


def test_a_generated_part_is_made_anew() -> None:
    old = "a\n<!-- begin options -->\nold\n<!-- end options -->\nb\n"
    made = generate.fill(old)
    assert made.startswith("a\n<!-- begin options -->\n| option |")
    assert made.endswith("|\n<!-- end options -->\nb\n")
    assert generate.fill(made) == made


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith(("https://", "codex:", "cursor:")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            slugs = {
                re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads
            }
            assert anchor in slugs, target


@each_page
def test_options_that_pages_name_exist(page: Path) -> None:
    others = {
        *("--scope", "--print", "--strict", "--help", "--version"),
        *("--json", "--live", "--thread-id", "--since", "--group-by", "--limit", "--events"),
        *("--check", "--paths", "--branch"),
    }
    known = {option.flag for option in OPTIONS} | others
    # The table of messages quotes Codex, and so Codex's options.
    text = re.sub(r"<!-- begin messages -->.*<!-- end", "", page.read_text(), flags=re.DOTALL)
    for flag in re.findall(r"`(?:mcp-server-codex )?(--[a-z][a-z-]*)[ `]", text):
        assert flag in known, flag


def test_the_fields_of_a_result_are_described() -> None:
    text = (TOP / "docs" / "results.md").read_text()
    table = text.partition("## The result of a run")[2].partition("## Long runs")[0]
    rows = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    fields = RunResult.model_fields.items()
    assert named == [field.alias or name for name, field in fields]


def test_resources_and_prompts_are_described() -> None:
    text = (TOP / "docs" / "results.md").read_text()
    for template in TEMPLATES:
        assert f"`{template.uri_template.partition('{?')[0]}`" in text
    for prompt in PROMPTS:
        assert f"`{prompt.name}`" in text


def test_pages_keep_out_what_is_none_of_a_readers_business() -> None:
    for page in PAGES:
        text = page.read_text()
        assert str(Path.home()) not in text
        assert str(TOP) not in text


def test_the_links_of_one_click_hold_what_install_would_print(tmp_path: Path) -> None:
    command = [server_program(), "install", "--print", "json"]
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    (name, printed), *_ = json.loads(done.stdout)["mcpServers"].items()
    links: list[str] = re.findall(
        r"\]\(((?:cursor|https)://\S+/install\?\S+)\)", (TOP / "README.md").read_text()
    )
    assert [urlsplit(link).netloc for link in links] == ["anysphere.cursor-deeplink", "vscode.dev"]
    for link in links:
        query = {key: value for key, (value,) in parse_qs(urlsplit(link).query).items()}
        config = query["config"]
        entry = json.loads(b64decode(config) if link.startswith("cursor:") else config)
        assert query["name"] == name
        # The link cannot know where the program is on the reader's machine.
        by_uvx = {"command": "uvx", "args": ["mcp-server-codex"]}
        assert {k: v for k, v in entry.items() if k != "type"} == printed | by_uvx


def test_the_result_in_the_readme_and_the_table_of_its_fields_have_each_field() -> None:
    shown = re.findall(
        r"```json\n(\{\n  \"run_id\".*?\n\})\n```", (TOP / "README.md").read_text(), re.S
    )
    example = RunResult.model_validate_json(shown[0])
    assert [*json.loads(shown[0])] == [*example.model_dump(by_alias=True)]
    page = (TOP / "docs" / "results.md").read_text()
    table = page.partition("## The result of a run")[2].partition("## ")[0]
    cells = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    assert {*re.findall(r"`([a-z_]+)`", cells)} == {*example.model_dump(by_alias=True)}


def test_the_picture_of_the_demo_is_shown_and_loads_nothing() -> None:
    assert "](docs/demo.svg)" in (TOP / "README.md").read_text()
    svg = (TOP / "docs" / "demo.svg").read_text()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "@import" not in svg
    assert "url(http" not in svg
    shown = " ".join(svg.replace("&#160;", " ").split())
    for words in (*(tool.name for tool in TOOLS), "usage_limit", "Codex is working"):
        assert (words in shown) is (words != "Codex is working"), words
    assert str(Path.home()) not in svg


def test_the_comparison_has_each_server_in_each_table_and_ours_leaves_no_process() -> None:
    page = (TOP / "docs" / "comparison.md").read_text().partition("<!-- measured by")[2]
    tables = [
        [line[2:-2].split(" | ") for line in table.splitlines() if line.startswith("| ")]
        for table in page.split("\n## ")[1:]
    ]
    assert len(tables) == 4
    servers = [row[0] for row in tables[0][2:]]
    assert len(servers) == 11
    assert servers[0].startswith("this server ")
    for table in tables:
        assert [row[0] for row in table[2:]] == servers
        assert {len(row) for row in table} == {len(table[0])}
    assert {*tables[-1][2][1:]} == {"0"}


def test_the_table_of_the_kill_matrix_has_each_end_and_nothing_left() -> None:
    table = (TOP / "README.md").read_text().partition(kills.BEGIN)[2].partition(kills.END)[0]
    rows = [row.split(" | ") for row in table.splitlines() if row.startswith("| ")][2:]
    source = (TOP / "tests" / "live" / "test_kill_matrix.py").read_text()
    ends = re.findall(r'^    End\("([^"]+)"', source, re.MULTILINE)
    assert [row[0].removeprefix("| ") for row in rows] == ends
    assert {(row[2], row[4].removesuffix(" |")) for row in rows} == {("0", "yes")}


def test_the_table_of_real_clients_has_each_of_them_and_no_failure() -> None:
    rows = clients.read()
    assert [*rows] == [f"{client.title} {client.version}" for client in real_clients.CLIENTS]
    assert not any("**no**" in cells for cells in rows.values())
    # Where the page names a version of a client in words, it is the version that was driven.
    text = (TOP / "docs" / "clients.md").read_text()
    seen = 0
    for client in real_clients.CLIENTS:
        said: list[str] = re.findall(rf"{re.escape(client.title)}\W+\((\d[^)]*)\)", text)
        assert all(client.version in versions for versions in said), (client.title, said)
        seen += bool(said)
    assert seen > 5


def test_the_newest_codex_that_was_tested_is_in_the_matrix() -> None:
    columns = compat.read()
    assert [*columns][-1].partition("/")[0] == ".".join(map(str, NEWEST_TESTED))
    assert {*compat.VERSIONS} <= columns.keys()
    assert not any(" of " in cell for column in columns.values() for cell in column.values())


def test_each_claim_about_safety_names_tests_that_exist() -> None:
    rows = [
        row for row in (TOP / "docs" / "safety.md").read_text().splitlines() if row.startswith("| ")
    ]
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    assert len(rows) > 30
    for row in rows[1:]:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        for name in named:
            assert f"def {name}(" in tests, name
