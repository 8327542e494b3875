"""The bundle for Claude Desktop: what it says is true, and it starts as it is unpacked."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast
from zipfile import ZipFile

import pytest

from mcp_server_codex.calls import TOOLS
from mcp_server_codex.settings import OPTIONS
from support.codex_versions import from_npm
from support.fake_codex import FakeCodex, answer_lines, events, thread_line
from support.installed_package import TOP, clean_environment, connect_by, unfriendly
from support.lab import Json, Lab, call

MCPB = "2.1.2"
"""The version of the official packer that the tests fetch, and the Makefile names."""

MANIFEST = cast("Json", json.loads((TOP / "manifest.json").read_text()))
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]

# The packer's own way to make a command of a manifest, which Claude Desktop uses as well.
_SUBSTITUTE = """
const {{ getMcpConfigForManifest }} = await import({module});
console.log(JSON.stringify(await getMcpConfigForManifest({options})));
"""


@cache
def packer() -> Path:
    """Return the folder of the official packer, from npm."""
    folder = from_npm(f"npm/mcpb-{MCPB}", f"@anthropic-ai/mcpb@{MCPB}")
    return folder / "node_modules" / "@anthropic-ai" / "mcpb"


@dataclass(frozen=True, slots=True)
class Bundle:
    """The bundle, packed and unpacked again."""

    file: Path
    folder: Path

    def command(self, manifest: Json, chosen: Mapping[str, object]) -> Json:
        """Return the command, arguments and variables that *manifest* stands for.

        Args:
            manifest: The bundle's own, or a change of it.
            chosen: What somebody has entered in the window.
        """
        options = {
            "manifest": manifest,
            "extensionPath": str(self.folder),
            "systemDirs": {},
            "userConfig": dict(chosen),
            "pathSeparator": "/",
        }
        module = json.dumps((packer() / "dist" / "index.js").as_uri())
        code = _SUBSTITUTE.format(module=module, options=json.dumps(options))
        node = ["node", "--input-type=module", "-e", code]
        done = subprocess.run(node, capture_output=True, text=True, check=True)
        return cast("Json", json.loads(done.stdout))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    made = tmp_path_factory.mktemp("bundle")
    program = f"MCPB=node {packer() / 'dist' / 'cli' / 'cli.js'}"
    make = ["make", "-C", str(TOP), "bundle", f"DIST={made}", program]
    done = subprocess.run(make, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = made.iterdir()
    folder = made / "unpacked"
    with ZipFile(file) as archive:
        archive.extractall(folder)
    return Bundle(file, folder)


def test_the_bundle_holds_what_is_needed_and_no_more(bundle: Bundle) -> None:
    assert bundle.file.name == f"mcp-server-codex-{PROJECT['version']}.mcpb"
    assert {path.name for path in bundle.folder.iterdir()} == {
        *("manifest.json", "icon.png", "pyproject.toml", "README.md", "LICENSE"),
        *("server", "tools"),
    }
    files = [path for path in bundle.folder.rglob("*") if path.is_file()]
    for path in files:
        assert path.read_bytes() == (TOP / path.relative_to(bundle.folder)).read_bytes()
    packed = {path.relative_to(bundle.folder) for path in files}
    for source in ("server", "tools"):
        for path in (TOP / source).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(TOP) in packed
    assert not [path for path in packed if path.suffix == ".pyc"]


def test_the_manifest_says_what_the_project_says() -> None:
    assert MANIFEST["name"] == PROJECT["name"]
    assert MANIFEST["version"] == PROJECT["version"]
    assert MANIFEST["license"] == PROJECT["license"]
    assert MANIFEST["author"] == PROJECT["authors"][0]
    assert MANIFEST["description"] == PROJECT["description"].replace(" over MCP", "")
    assert MANIFEST["compatibility"]["runtimes"]["python"] == PROJECT["requires-python"]
    assert (TOP / MANIFEST["server"]["entry_point"]).is_file()
    assert (TOP / MANIFEST["icon"]).read_bytes().startswith(b"\x89PNG")
    assert f"mcpb@{MCPB} " in (TOP / "Makefile").read_text().replace("\n", " ")


def test_the_manifest_lists_the_tools_by_the_first_sentence_of_each() -> None:
    assert [tool["name"] for tool in MANIFEST["tools"]] == [tool.name for tool in TOOLS]
    for listed, tool in zip(MANIFEST["tools"], TOOLS, strict=True):
        assert listed["description"] == tool.description.partition(". ")[0].rstrip(".") + "."


def test_each_setting_of_the_window_reaches_the_option_of_its_name() -> None:
    by_variable = {variable: option for option in OPTIONS for variable in option.variables}
    config = MANIFEST["server"]["mcp_config"]
    settings = dict(MANIFEST["user_config"])
    assert config["args"][-2:] == ["--", "${user_config.roots}"]
    assert settings.pop("roots")["default"] == []
    for variable, value in config["env"].items():
        if not value.startswith("${"):
            continue
        name = value.removeprefix("${user_config.").removesuffix("}")
        setting = settings.pop(name)
        if variable == "CLAUDE_PROJECT_DIR":
            assert setting["default"] == ""
            continue
        option = by_variable[variable]
        assert option.name == name
        # Without a default, what is left blank reaches the server as it stands in the manifest.
        assert setting["default"] == ("" if option.default is None else option.default)
    assert settings == {}
    assert all(s["required"] is False for s in MANIFEST["user_config"].values())


def without_defaults() -> Json:
    settings = {
        name: {key: value for key, value in setting.items() if key != "default"}
        for name, setting in MANIFEST["user_config"].items()
    }
    return MANIFEST | {"user_config": settings}


@pytest.mark.parametrize("manifest", [MANIFEST, without_defaults()], ids=["as it is", "bare"])
async def test_with_everything_left_blank_it_starts_among_unfriendly_packages(
    bundle: Bundle, mode: str, tmp_path: Path, manifest: Json
) -> None:
    made = bundle.command(manifest, {})
    assert ("${user_config." in json.dumps(made)) is (manifest is not MANIFEST)
    cwd = unfriendly(tmp_path / "project")
    env = clean_environment(tmp_path / "home") | {"PYTHONPATH": str(cwd)} | made["env"]
    log = tmp_path / "log"
    async with connect_by(made["command"], made["args"], env, mode, cwd=cwd, log=log) as client:
        usage = await client.call_tool("codex_usage", {})
    assert cast("Json", usage.structured_content)["sessions_read"] == 0


async def test_what_was_chosen_in_the_window_holds(
    bundle: Bundle, mode: str, lab: Lab, fake: FakeCodex, tmp_path: Path
) -> None:
    fake.stdout = events(thread_line(), *answer_lines("hello"))
    second = tmp_path / "second"
    second.mkdir()
    chosen = {
        "roots": [str(lab.project), str(second)],
        "folder": str(lab.project),
        "codex_bin": str(fake.build()),
        "default_sandbox": "workspace-write",
        "timeout_s": 77,
        "max_runs": 1,
    }
    made = bundle.command(MANIFEST, chosen)
    env = clean_environment(tmp_path / "home") | made["env"]
    cwd, log = unfriendly(tmp_path / "project"), tmp_path / "log"
    async with connect_by(made["command"], made["args"], env, mode, cwd=cwd, log=log) as client:
        done = await call(client, "codex_run", prompt="x")
        there = await call(client, "codex_run", prompt="x", cwd=str(second))
        elsewhere = await call(client, "codex_run", prompt="x", cwd=str(cwd))
        wider = await call(client, "codex_run", prompt="x", sandbox="danger-full-access")
    assert (done["final_response"], done["sandbox"]) == ("hello", "workspace-write")
    assert done["cwd"] == str(lab.project)
    assert there["cwd"] == str(second)
    assert elsewhere["error"]["kind"] == wider["error"]["kind"] == "not_allowed"
    state = next((tmp_path / "home").rglob("audit.jsonl"))
    assert json.loads(state.read_text().splitlines()[0])["timeout_s"] == 77


def test_the_packer_is_pleased_with_the_manifest() -> None:
    node = shutil.which("node") or "node"
    command = [node, str(packer() / "dist" / "cli" / "cli.js"), "validate", "manifest.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TOP)
    assert done.returncode == 0, done.stdout
