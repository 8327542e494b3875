"""server.json, by which the MCP Registry lists the server: well formed, and true to the code."""

from __future__ import annotations

import json
import tomllib
from typing import cast

import pytest

from codex_tools.schemas.validation import problems
from mcp_server_codex.settings import OPTIONS, Option
from support.installed_package import TOP
from support.lab import Json

ENTRY = cast("Json", json.loads((TOP / "server.json").read_text()))
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
(PACKAGE,) = cast("list[Json]", ENTRY["packages"])
VARIABLES = {variable["name"]: variable for variable in PACKAGE["environmentVariables"]}

TEXT: Json = {"type": "string", "minLength": 1}

# What the registry's schema of 2025-12-11 asks of the fields that we use, and no field besides.
SCHEMA: Json = {
    "type": "object",
    "additionalProperties": False,
    "required": ["$schema", "name", "description", "version", "packages"],
    "properties": {
        "$schema": {
            "const": "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"
        },
        "name": {
            "type": "string",
            "pattern": r"^[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+$",
            "maxLength": 200,
        },
        "title": TEXT | {"maxLength": 100},
        "description": TEXT | {"maxLength": 100},
        "version": TEXT | {"maxLength": 255, "pattern": r"^\d+\.\d+\.\d+$"},
        "packages": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["registryType", "identifier", "version", "transport"],
                "properties": {
                    "registryType": {"const": "pypi"},
                    "identifier": TEXT,
                    "version": TEXT | {"pattern": r"^\d+\.\d+\.\d+$"},
                    "runtimeHint": {"const": "uvx"},
                    "transport": {"const": {"type": "stdio"}},
                    "environmentVariables": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["name", "description"],
                            "properties": {
                                "name": TEXT,
                                "description": TEXT,
                                "format": {"enum": ["number", "filepath"]},
                                "default": TEXT,
                                "value": {"type": "string"},
                                "choices": {"type": "array", "items": TEXT},
                            },
                        },
                    },
                },
            },
        },
    },
}


def test_it_is_as_the_registry_wants_it() -> None:
    assert problems(SCHEMA, ENTRY) == []


def test_the_readme_says_whose_package_it_is() -> None:
    # The registry looks for it in what PyPI shows of the package.
    assert f"mcp-name: {ENTRY['name']} " in (TOP / "README.md").read_text()


def test_it_names_the_package_that_is_built_here() -> None:
    assert PACKAGE["identifier"] == PROJECT["name"] == ENTRY["name"].partition("/")[2]
    assert PACKAGE["version"] == ENTRY["version"] == PROJECT["version"]
    # `uvx PACKAGE`, which is what clients run, wants a script of the package's own name.
    assert PACKAGE["identifier"] in PROJECT["scripts"]
    manifest = json.loads((TOP / "manifest.json").read_text())
    assert ENTRY["description"] == manifest["description"]
    assert ENTRY["title"] == manifest["display_name"]


def test_it_has_a_variable_for_each_option_and_those_that_keep_strangers_out() -> None:
    assert [*VARIABLES] == [
        *(option.also[0] if option.also else option.variables[0] for option in OPTIONS),
        *("PYTHONPATH", "PYTHONSAFEPATH"),
    ]
    plugin = json.loads((TOP / "plugin" / ".mcp.json").read_text())["mcpServers"]["codex"]
    fixed = {name: each["value"] for name, each in VARIABLES.items() if "value" in each}
    assert fixed == plugin["env"]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.flag)
def test_each_variable_says_what_its_option_says(option: Option) -> None:
    told = next(VARIABLES[name] for name in option.variables if name in VARIABLES)
    assert told["description"] == option.help
    if "default" in told:
        assert option.read(told["default"]) == option.default
    else:
        assert not option.default
    if "choices" in told:
        assert [option.read(choice) for choice in told["choices"]] == told["choices"]
        with pytest.raises(ValueError, match=", ".join(told["choices"])):
            option.read("none of them")
    if told.get("format") == "number":
        with pytest.raises(ValueError, match="none"):
            option.read("none")
