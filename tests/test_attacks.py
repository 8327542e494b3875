"""Attacks by the model that calls: each is refused before Codex starts, or comes to nothing.

The evidence is the process itself: what Codex was started with, by argv and
environment, is held against one grammar that knows no way to more rights.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from codex_tools.codex.errors import InvalidArguments
from codex_tools.policy import Policy
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.lab import PNG, Json, Lab, call, connect, until

REFUSED, HARMLESS = "refused", "harmless"

PLANTED = {
    "ANTHROPIC_API_KEY": "planted",
    "CLAUDE_CODE_MESSAGING_TOKEN": "planted",
    "MCP_SERVER_CODEX_ALLOW_CONFIG": "",
    "MCP_SERVER_CODEX_TIMEOUT_S": "600",
}
OUTER, ZERO, BOM, RTL = "\u2028", "\u200b", "\ufeff", "\u202e"
LONG = "a" * 300
UUID = "01a20661-b445-73e1-b566-c552cde98ccd"


@dataclass(frozen=True)
class Attack:
    """Arguments, and what has to become of them."""

    name: str
    arguments: Json
    end: str
    tool: str = "codex_run"
    rooted: bool = True
    """Whether the server has the project for its only root."""
    kinds: tuple[str, ...] = field(default=("invalid_arguments", "not_allowed"))


def deep(levels: int, leaf: Any = 1) -> Any:
    for _ in range(levels):
        leaf = {"a": leaf}
    return leaf


def schema_bomb() -> Json:
    """Return a schema that doubles with each of its definitions."""
    defs: Json = {"d0": {"type": "string"}}
    for number in range(1, 40):
        reference = {"$ref": f"#/$defs/d{number - 1}"}
        defs[f"d{number}"] = {"allOf": [reference, {"anyOf": [reference, reference]}]}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/d39"}}, "$defs": defs}


def attacks(lab: Lab) -> Iterator[Attack]:
    """Yield all attacks, in a project with links and files laid out by `lay_out`."""
    project, outside, home = str(lab.project), str(lab.root / "outside"), str(lab.root)

    # Paths that lead out of the root, as the folder, as further folders, as images.
    ways_out = {
        "outside": outside,
        "root of all": "/",
        "parent": f"{project}/..",
        "dots": f"{project}/sub/../../outside",
        "many dots": f"{project}/" + "../" * 40 + "etc",
        "link": f"{project}/link",
        "link of a link": f"{project}/link2",
        "below a link": f"{project}/link/inner",
        "link and dots": f"{project}/link/../outside",
        "through /proc/self/root": f"/proc/self/root{outside}",
        "through /proc/self/cwd": "/proc/self/cwd/../outside",
        "through a descriptor": "/dev/fd/../../root",
        "a name that begins as the root's": f"{project}-evil",
        "double slash": f"//{outside}",
        "odd case": project.upper(),
        "dot at the end": f"{project}/../project-evil/.",
        "home": home,
        "codex home": str(lab.home),
        "state": str(lab.state),
        "etc": "/etc",
        "tmp": "/tmp",
    }
    for name, path in ways_out.items():
        yield Attack(f"cwd {name}", {"cwd": path}, REFUSED)
        yield Attack(f"add_dirs {name}", {"add_dirs": [path]}, REFUSED)
    for name in ("link/secret.png", "link-to-secret.png", "../outside/secret.png"):
        yield Attack(f"image {name}", {"images": [name]}, REFUSED)
        yield Attack(f"image {name} whole", {"images": [f"{project}/{name}"]}, REFUSED)
    yield Attack("a good folder and a bad one", {"add_dirs": ["sub", outside]}, REFUSED)
    yield Attack("device as image", {"images": ["/dev/zero"]}, REFUSED)
    yield Attack("auth.json as image", {"images": [f"{lab.home}/auth.json"]}, REFUSED)
    yield Attack("pipe as image", {"images": ["pipe"]}, REFUSED)
    yield Attack("ring of links", {"cwd": f"{project}/ring"}, REFUSED)

    # Paths that are none, or could be taken for something else.
    for name, path in {
        "null byte": f"{project}\0/etc",
        "line feed": f"{project}\n/etc",
        "escape": f"{project}/\x1b[2J",
        "relative": "sub",
        "option": "--dangerously-bypass-approvals-and-sandbox",
        "tilde": "~",
        "variable": "$HOME",
        "empty": "",
        "endless": "/" + "a/" * 50_000,
        "long name": f"{project}/{'a' * 5000}",
        "url": "file:///etc",
        "file": f"{project}/file.txt",
        "right to left": f"{project}/{RTL}bus",
    }.items():
        # An empty text means left out.
        yield Attack(f"cwd {name}", {"cwd": path}, HARMLESS if name == "empty" else REFUSED)
        if name not in ("relative", "empty"):
            yield Attack(f"add_dirs {name}", {"add_dirs": [path]}, REFUSED)
    for name, path in {
        "option": "--yolo",
        "dash": "-",
        "null byte": "a.png\0",
        "line feed": "a.png\n-c",
        "folder": "sub",
        "gone": "gone.png",
    }.items():
        yield Attack(f"image {name}", {"images": [path]}, REFUSED)
    yield Attack("image with an option's name", {"images": ["-s.png"]}, HARMLESS)
    yield Attack("image with commas", {"images": ["a,--yolo,b.png"]}, HARMLESS)
    yield Attack("folder with an option's name", {"add_dirs": ["--yolo"]}, HARMLESS)
    yield Attack("folder with blanks and quotes", {"cwd": f"{project}/a \"b' $(c)"}, HARMLESS)
    yield Attack("very many folders", {"add_dirs": ["sub"] * 100_000}, REFUSED)
    yield Attack("folders as a string", {"add_dirs": "sub"}, HARMLESS)
    yield Attack("folders outside as a string", {"add_dirs": outside}, REFUSED)

    # Sandboxes beyond the ceiling, or in odd letters.
    for sandbox in (
        *("danger-full-access", "Danger-Full-Access", "DANGER-FULL-ACCESS", "danger_full_access"),
        *("workspace-write ", " read-only", "Read-Only", "READ-ONLY", "read\u2010only", "full"),
        *("yolo", "", "none", "off", f"read-only{ZERO}", f"{BOM}read-only", "read-only\0"),
        *("read-only\n-s danger-full-access", "danger-full-access --", "r\u0435ad-only"),
        *(0, None, True),
        *(["danger-full-access"], {"mode": "danger-full-access"}, "externalsandbox"),
    ):
        end = HARMLESS if sandbox in (None, "") else REFUSED
        yield Attack(f"sandbox {sandbox!r}", {"sandbox": sandbox}, end)
    write = {"sandbox": "workspace-write"}
    for name, folder in {
        "all": "/",
        "home": home,
        "above home": str(lab.root.parent),
        "codex home": str(lab.home),
        "in codex home": str(lab.home / "sessions"),
        "state": str(lab.state),
        "in state": str(lab.state / "runs"),
        "link to home": f"{project}/home-link",
        "link to codex home": f"{project}/codex-link",
    }.items():
        yield Attack(f"writes to {name}", write | {"cwd": folder}, REFUSED, rooted=False)
        more = write | {"cwd": project, "add_dirs": [folder]}
        yield Attack(f"also writes to {name}", more, REFUSED, rooted=False)
    yield Attack(
        "reads at home", {"cwd": home, "skip_git_repo_check": True}, HARMLESS, rooted=False
    )

    # Keys of the configuration.
    for key in (
        *("sandbox_mode", "sandbox_workspace_write.network_access", "sandbox_permissions"),
        *("sandbox_workspace_write.writable_roots", "sandbox_workspace_write", "sandbox"),
        *("approval_policy", "approvals_reviewer", "ask_for_approval", "permissions.default"),
        *("mcp_servers.x.command", "mcp_servers", "notify", "hooks", "hooks.pre_tool_use"),
        *("model_provider", "model_providers.x.base_url", "chatgpt_base_url", "openai_base_url"),
        *("shell_environment_policy.inherit", "shell_environment_policy.exclude", "profile"),
        *("shell_environment_policy.set.LD_PRELOAD", "profiles.x.sandbox_mode", "features.x"),
        *("features.web_search_request", "projects./.trust_level", "trust_level", "tools"),
        *("experimental_instructions_file", "model_instructions_file", "developer_instructions"),
        *("model_catalog_json", "log_dir", "history.persistence", "otel.exporter", "plugins.x"),
        *("tools.web_search.x", "web_search ", "WEB_SEARCH", "web-search", "model", "cwd"),
        *("tools.web_search=true\nsandbox_mode", "web_search\n", '"web_search"', "web_search\0"),
        *("", ".", "..", "web_search.", ".web_search", "a=b", "a b", "web_search#", "[hooks]"),
        *("web\u200b_search", "we\u0432_search", LONG, "-c", "--yolo", "*", "web_search,notify"),
    ):
        yield Attack(f"config {key!r}", {"config": {key: True}}, REFUSED)
        if len(key) < 50:
            mixed = {"config": {"web_search": "live", key: "x"}}
            yield Attack(f"config {key!r} beside a safe one", mixed, REFUSED)

    # Values that want to be more than one.
    for name, value in {
        "quote": '"\nsandbox_mode = "danger-full-access',
        "second table": 'live"\n[mcp_servers.x]\ncommand = "sh',
        "triple quote": '"""\nnotify = ["sh"]\n"""',
        "comment": 'live" # ',
        "backslash": "\\",
        "backslash and quote": '\\" , notify=["sh"] #',
        "carriage return": "live\rnotify=['sh']",
        "line separator": f"live{OUTER}notify=1",
        "null byte": "live\0notify",
        "delete": "\x7f",
        "brace": "} notify = {",
        "list with quote": ['"]\nnotify = ["sh"]'],
        "table with key": {'a" = 1}\nnotify = ["sh"]\n#': 1},
        "table with dots": {"a.b": 1},
        "empty table": {},
        "empty list": [],
        "huge number": 10**18,
        "look-alike": "\uff02\nnotify",
    }.items():
        yield Attack(f"value {name}", {"config": {"web_search": value}}, HARMLESS)
    for name, value in {
        "null": None,
        "null inside": [{"a": None}],
        "deep": deep(180),
        "deeper": deep(220),
        "huge text": "x" * 200_000,
        "beyond 64 bits": 2**70,
    }.items():
        yield Attack(f"value {name}", {"config": {"web_search": value}}, REFUSED)
    yield Attack("config as a list", {"config": [["notify", "sh"]]}, REFUSED)
    yield Attack("config as text", {"config": "notify=['sh']"}, REFUSED)

    # Names that want to be options, paths or TOML.
    for option in ("model", "profile", "reasoning_effort"):
        for value in (
            *("--yolo", "-c", "-", "", " ", "a b", 'a"b', "a'b", "a\\b", "a\nb", "a\0b", "a\tb"),
            *(f"a{OUTER}b", f"{RTL}a", "a" * 5000, "gpt\u20115", 5, ["a"], "=x", "$(id)"),
        ):
            end = REFUSED if value else HARMLESS
            yield Attack(f"{option} {value!r:.40}", {option: value}, end)
    for value in ("../evil", "a/../../evil", "/etc/passwd", "a/b", "..", "a..b", ".a", "a.", "~"):
        yield Attack(f"profile {value!r}", {"profile": value}, REFUSED)
    for value in ("org/model:free", "a=b", "gpt-5.5@2026", "a[1m]", "a;id", "a|id", "a`id`"):
        yield Attack(f"model {value!r}", {"model": value}, HARMLESS)

    # Prompts are data, whatever they say.
    for name, prompt in {
        "option": "--dangerously-bypass-approvals-and-sandbox",
        "dash": "-",
        "subcommand": "resume --last",
        "null byte": "a\0b",
        "shell": "`id`; $(id) && rm -rf /",
        "end of file": "a\x04b\x1ac",
        "ansi": "\x1b]0;pwned\x07",
    }.items():
        yield Attack(f"prompt {name}", {"prompt": prompt}, HARMLESS)
    yield Attack("prompt blank", {"prompt": " \n\t\u3000"}, REFUSED)
    too_large = ("prompt_too_large",)
    yield Attack("prompt huge", {"prompt": "x" * 1_000_001}, REFUSED, kinds=too_large)
    yield Attack("prompt of another kind", {"prompt": ["a"]}, REFUSED)

    # Limits.
    for name, value in {
        "too long": 10**7,
        "endless": 1e308,
        "zero": 0,
        "negative": -5,
        "text": "9999999",
        "text with a unit": "600s",
        "yes": True,
    }.items():
        yield Attack(f"timeout {name}", {"timeout_s": value}, REFUSED)
    yield Attack("wait negative", {"wait_s": -1}, REFUSED)
    yield Attack("repairs without end", {"repair_attempts": 1000}, REFUSED)

    # Arguments that no tool has.
    for name in (
        "dangerously_bypass",
        "approval_policy",
        "env",
        "args",
        "codex_bin",
        "Sandbox",
        "sand\u0412ox",
        "__proto__",
        "policy",
        "cwd ",
        "max_sandbox",
        "_meta",
    ):
        yield Attack(f"argument {name!r}", {name: "x"}, REFUSED)

    # Threads.
    for value in (
        *("--last", "--all", "../../auth.json", f"../{UUID}", f"{UUID}/..", f"{UUID}\0", "last"),
        *(f"{UUID}\n--yolo", f"{UUID} --yolo", "", "*", "%", f"{{{UUID}}}x", 7, "0" * 31, UUID * 2),
    ):
        yield Attack(f"thread {value!r:.40}", {"thread_id": value}, REFUSED, "codex_resume")
    for value in (UUID, UUID.upper(), f"{{{UUID}}}", f"urn:uuid:{UUID}", UUID.replace("-", "")):
        unknown = ("thread_not_found",)
        yield Attack(
            f"thread {value!r:.40}", {"thread_id": value}, REFUSED, "codex_resume", kinds=unknown
        )
    yield Attack("thread and last", {"thread_id": UUID, "last": True}, REFUSED, "codex_resume")
    yield Attack(
        "last, outside",
        {"last": True, "cwd": outside},
        REFUSED,
        "codex_resume",
        kinds=("not_allowed", "thread_not_found"),
    )

    # Schemas.
    schema = ("invalid_output_schema", "invalid_arguments")
    schemas: Json = {
        "deeper": deep(220),
        "deep properties": json.loads(
            '{"type":"object","properties":{"a":' * 90 + "{}" + "}}" * 90
        ),
        "bomb": schema_bomb(),
        "remote": {"$ref": "http://127.0.0.1:1/schema.json"},
        "file": {"$ref": "file:///etc/passwd"},
        "ring": {"$ref": "#"},
        "nowhere": {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}},
        "not a schema": {"type": "objekt"},
        "impossible": {"type": "object", "properties": {"a": False}, "required": ["a"]},
        "too many properties": {
            "type": "object",
            "properties": {f"p{n}": {"type": "string"} for n in range(6000)},
        },
        "too many words": {"enum": [f"w{n}" for n in range(2000)]},
        "text": "{",
        "list": [],
    }
    for name, value in schemas.items():
        yield Attack(f"schema {name}", {"output_schema": value}, REFUSED, kinds=schema)
    yield Attack("schema deep", {"output_schema": deep(180)}, HARMLESS)
    evil = {"type": "object", "properties": {'a"\n--yolo': {"type": "string"}}}
    yield Attack("schema with an odd name", {"output_schema": evil}, HARMLESS)
    slow = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    yield Attack("schema with a slow pattern", {"output_schema": slow}, HARMLESS)


def lay_out(lab: Lab) -> None:
    outside, project = lab.root / "outside", lab.project
    (outside / "inner").mkdir(parents=True)
    for folder in (
        lab.root / "project-evil",
        project / "sub",
        project / "--yolo",
        project / "a \"b' $(c)",
        lab.home / "sessions",
        lab.state / "runs",
    ):
        folder.mkdir(parents=True)
    for picture in (outside / "secret.png", project / "-s.png", project / "a,--yolo,b.png"):
        picture.write_bytes(PNG)
    (project / "file.txt").write_text("x")
    (lab.home / "auth.json").write_text("{}")
    for link, target in {
        "link": outside,
        "link2": project / "link",
        "link-to-secret.png": outside / "secret.png",
        "ring": project / "ring",
        "home-link": lab.root,
        "codex-link": lab.home,
    }.items():
        (project / link).symlink_to(target)
    os.mkfifo(project / "pipe")


TAKEN = {
    "-s": 1,
    "-C": 1,
    "-m": 1,
    "-p": 1,
    "-c": 1,
    "--add-dir": 1,
    "--output-schema": 1,
    "--skip-git-repo-check": 0,
    "--ephemeral": 0,
    "--ignore-rules": 0,
}
KEYS = {
    *("model_reasoning_effort", "web_search", "shell_environment_policy", "tools", "features"),
    "default_permissions",
}


def insist_harmless(seen: Json, attack: Attack, lab: Lab) -> None:
    """Read Codex's command line by a grammar of our own; fail on anything that is not in it."""
    words: list[str] = seen["argv"][1:]
    assert words[:2] == ["exec", "--json"]
    assert words[-1] == "-"
    given: dict[str, list[str]] = {}
    rest = words[2:-1]
    while rest:
        word = rest.pop(0)
        if word.startswith("--image="):
            picture = Path(os.path.realpath(word.removeprefix("--image=")))
            assert picture.is_relative_to(lab.project) or not picture.exists()
            assert "," not in word
            continue
        assert word in TAKEN, word
        given.setdefault(word, []).append(rest.pop(0) if TAKEN[word] else "")
    (sandbox,) = given["-s"]
    assert sandbox in ("read-only", "workspace-write")
    (cwd,) = given["-C"]
    assert seen["cwd"] == cwd == os.path.realpath(cwd)
    for folder in (cwd, *given.get("--add-dir", [])):
        assert Path(folder).is_absolute()
        assert not attack.rooted or Path(os.path.realpath(folder)).is_relative_to(lab.project)
    for pair in given.get("-c", []):
        assert "\n" not in pair
        assert {*tomllib.loads(pair)} <= KEYS, pair
    for name in ("-m", "-p"):
        assert not any(value.startswith("-") for value in given.get(name, []))
    assert "planted" not in seen["env"].values()
    assert not any(name.startswith("MCP_SERVER_CODEX_") for name in seen["env"])
    prompt = attack.arguments.get("prompt", "x")
    assert seen["stdin"] == prompt.encode("utf-8", "replace").decode()
    assert len(prompt) < 3 or prompt not in seen["argv"]


async def strike(client: Any, attack: Attack, fake: FakeCodex, lab: Lab) -> str | None:
    """Return what is wrong with how *attack* ended, or None."""
    fake.forget()
    arguments = {"prompt": "x", **attack.arguments}
    try:
        result = await call(client, attack.tool, **arguments)
        error = result["error"] or {"kind": None}
        if attack.end == REFUSED:
            assert not fake.was_started, "Codex was started"
            assert error["kind"] in attack.kinds, error
            assert len(result["text"]) < 10_000
        else:
            assert fake.was_started, error
            insist_harmless(fake.seen(), attack, lab)
    except MCPError as error:  # Nested too deeply to be read as a message at all.
        if fake.was_started or "deep" not in attack.name:
            return f"{attack.name}: {error}"
    except AssertionError as fault:
        return f"{attack.name}: {fault}"
    return None


@pytest.mark.parametrize("path", ["/tmp/\ud800"])
def test_half_a_character_in_a_path_is_refused(path: str) -> None:
    """No client on the SDK can send one, so here it comes without a wire."""
    with pytest.raises(InvalidArguments):
        Policy().folder("cwd", path)


@pytest.mark.parametrize("rooted", [True, False])
async def test_every_attack_is_refused_or_harmless(
    mode: str, lab: Lab, fake: FakeCodex, rooted: bool
) -> None:
    lay_out(lab)
    fake.stdout = events(thread_line(), *answer_lines('{"a\\"\\n--yolo": null, "a": null}'))
    chosen = [attack for attack in attacks(lab) if attack.rooted is rooted]
    assert len(chosen) >= (400 if rooted else 15)
    options = ("--root", str(lab.project)) if rooted else ()
    async with connect(mode, fake.build(), lab, *options, env=PLANTED) as client:
        faults = [await strike(client, attack, fake, lab) for attack in chosen]
    assert [fault for fault in faults if fault is not None] == []


@asynccontextmanager
async def full_house(mode: str, lab: Lab, fake: FakeCodex) -> AsyncGenerator[Client]:
    """Keep the only place for a run taken until the file `busy` is gone."""
    lay_out(lab)
    fake.stdout = events(thread_line(), *answer_lines("done"))
    fake.body = f"while os.path.exists({str(lab.root / 'busy')!r}): time.sleep(0.05)"
    (lab.root / "busy").touch()
    options = ("--root", str(lab.project), "--max-runs", "1")
    async with connect(mode, fake.build(), lab, *options) as client:
        await call(client, "codex_run", prompt="first", wait_s=0)
        await until(lambda: fake.was_started)
        fake.forget()
        yield client


async def let_in(client: Client, lab: Lab, *waiting: Json) -> list[Json]:
    """Free the place, and return what became of the runs that were waiting for it."""
    (lab.root / "busy").unlink()
    ids = [run["run_id"] for run in waiting]
    with anyio.fail_after(60):
        result = await client.call_tool("codex_wait", {"run_ids": ids, "wait_s": 50})
    return cast("Json", result.structured_content)["runs"]


async def test_a_folder_replaced_by_a_link_while_the_run_waits_in_line_is_not_entered(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    async with full_house(mode, lab, fake) as client:
        waiting = [
            await call(client, "codex_run", prompt="x", wait_s=0, **arguments)
            for arguments in ({"cwd": f"{lab.project}/sub"}, {"add_dirs": ["sub"]})
        ]
        (lab.project / "sub").rmdir()
        (lab.project / "sub").symlink_to(lab.root / "outside")
        runs = await let_in(client, lab, *waiting)
    assert [run["error"]["kind"] for run in runs] == ["not_allowed", "not_allowed"]
    assert not fake.was_started


async def test_a_link_swapped_after_the_check_leads_where_it_led_then(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    link = lab.project / "swap"
    link.symlink_to(lab.project / "sub")
    async with full_house(mode, lab, fake) as client:
        waiting = await call(client, "codex_run", prompt="x", wait_s=0, cwd=str(link))
        link.unlink()
        link.symlink_to(lab.root / "outside")
        await let_in(client, lab, waiting)
    assert fake.seen()["cwd"] == str(lab.project / "sub")


async def test_outside_the_roots_nobody_can_feel_what_is_there(
    mode: str, lab: Lab, fake: FakeCodex
) -> None:
    lay_out(lab)
    outside = lab.root / "outside"
    async with connect(mode, fake.build(), lab, "--root", str(lab.project)) as client:
        for arguments in (
            {"cwd": str(outside)},
            {"cwd": str(outside / "gone")},
            {"images": [str(outside / "secret.png")]},
            {"images": [str(outside / "gone.png")]},
        ):
            result = await call(client, "codex_run", prompt="x", **arguments)
            assert result["error"]["kind"] == "not_allowed", arguments
            assert "outside the roots" in result["error"]["message"]
