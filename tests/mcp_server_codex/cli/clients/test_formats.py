"""One value of a text changes; comments, indentation and line endings stay."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_server_codex.cli.clients.config_error import ConfigError
from mcp_server_codex.cli.clients.formats import JSON, JSONC, TOML, Format

REMOVED = {
    "first": ('{\n  "x": 1, // ours\n  "b": 2\n}', '{ // ours\n  "b": 2\n}'),
    "last": ('{\n  "a": 1,\n  "x": 2\n}\n', '{\n  "a": 1\n}\n'),
    "last with a comma": ('{\n  "a": 1,\n  "x": 2,\n}\n', '{\n  "a": 1,\n}\n'),
    "between": ('{"a":1,"x":[{"x":2}],"b":3}', '{"a":1,"b":3}'),
    "behind a comment": ('{\n  "a": 1, // x\n  "x": 2\n}', '{\n  "a": 1 // x\n}'),
    "behind a comment, in its line's end": (
        '{ "a": 1, // x\n  "x": 2, "b": 3 }',
        '{ "a": 1, // x\n   "b": 3 }',
    ),
    "before its comma": ('{"x": 1 /* , */ , "b": 2}', '{ "b": 2}'),
    "alone": ('{ "x": 1 }', "{}"),
    "alone with a comment": ('{\n  // none\n  "x": 1\n}', "{\n  // none\n}"),
    "a string that looks like a comment": ('{"a": "//", "x": 1}', '{"a": "//"}'),
    "given twice": ('{"x": 0, "x": 1}', None),
}


@pytest.mark.parametrize("name", REMOVED)
def test_a_member_is_cut_out_with_its_comma(name: str) -> None:
    text, wanted = REMOVED[name]
    if wanted is None:
        with pytest.raises(ConfigError, match="cannot be changed safely"):
            JSONC.remove(text, ("x",))
    else:
        assert JSONC.remove(text, ("x",)) == wanted


PUT = {
    "on one line": ('{"a": 1}', '{"a": 1, "x": 7}'),
    "minified": ('{"a":1}', '{"a":1,"x":7}'),
    "on lines": ('{\n\t"a": 1\n}', '{\n\t"a": 1,\n\t"x": 7\n}'),
    "behind the last comment": (
        '{\n  "a": 1 // one\n  /* two */\n}',
        '{\n  "a": 1, // one\n  /* two */\n  "x": 7\n}',
    ),
    "behind a comment on one line": ('{ "a": 1 // one\n}', '{ "a": 1, // one\n"x": 7\n}'),
    "in place": ('{"x" : [1, // 2\n 3], "b": 2}', '{"x" : 7, "b": 2}'),
    "in an empty object with a comment": ("{ // none\n}", '{ // none\n  "x": 7\n}'),
    "nowhere": ("// none", '// none\n{\n  "x": 7\n}\n'),
}


@pytest.mark.parametrize("name", PUT)
def test_a_member_is_put_as_its_neighbours_are(name: str) -> None:
    text, wanted = PUT[name]
    assert JSONC.put(text, ("x",), 7) == wanted


NAMES = st.sampled_from(["a", "b", "servers", "x y", "é", "//", '"', "mcp_servers"])
LEAVES = st.one_of(
    st.integers(-9, 9), st.booleans(), st.text(max_size=8), st.sampled_from(["/* */", "#", '"""'])
)
TABLES = st.dictionaries(
    NAMES,
    st.recursive(
        LEAVES | st.lists(LEAVES, max_size=3),
        lambda inside: st.dictionaries(NAMES, inside, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
PATHS = st.lists(NAMES, min_size=1, max_size=2).map(lambda path: (*path, "codex"))
ENTRY: dict[str, Any] = {"command": "/c", "args": ["-a", "b#"], "env": {"A": ""}}


def check_round_trip(kind: Format, text: str, path: tuple[str, ...]) -> None:
    before = within = kind.parse(text)
    try:
        changed = kind.put(text, path, ENTRY)
    except ConfigError:
        # Refused only where a value on the path is not a table.
        inner: Any = before.get(path[0], {})
        assert not isinstance(inner, dict) or not isinstance(inner.get(path[1], {}), dict)  # pyright: ignore
        return
    assert kind.put(changed, path, ENTRY) == changed
    for name in path[:-1]:
        within = within.setdefault(name, {})
    assert kind.parse(changed) != before
    assert kind.parse(kind.remove(changed, path)) == before


@settings(max_examples=60, deadline=None)
@given(TABLES, PATHS, st.sampled_from([None, 2, "\t"]), st.sampled_from(["\n", "\r\n"]))
def test_any_json_takes_an_entry_and_gives_it_back(
    data: dict[str, Any], path: tuple[str, ...], indent: int | str | None, eol: str
) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=False).replace("\n", eol)
    for kind in (JSON, JSONC):
        check_round_trip(kind, text, path)


TOML_TEXTS = (
    'a = 1\n[mcp_servers]\n[mcp_servers.b] # c\nd = """\n[mcp_servers.codex]\n"""\n',
    "[mcp_servers.b]\nc = [\n  1, # ]\n  { d = '''\n''''' },\n]\n",
    'mcp_servers.b.c = "\\""\r\n[[x]]\r\n[[x]]\r\ny = { z = 1 }\r\n',
    '"mcp_servers" = { "b c" = { d = [1.5, true] } }\n',
    "[ mcp_servers . 'b' ]\nc = inf\n   # end",
    "[mcp_servers]\nb = { c = 1 }\nb2.c = 2",
    "\ufeffa = 1",
)


@pytest.mark.parametrize("text", TOML_TEXTS)
def test_toml_takes_an_entry_and_gives_it_back(text: str) -> None:
    path = ("mcp_servers", "codex")
    changed = TOML.put(text, path, ENTRY)
    assert tomllib.loads(changed.lstrip("\ufeff"))["mcp_servers"]["codex"] == ENTRY
    assert TOML.put(changed, path, ENTRY) == changed
    assert TOML.remove(changed, path).rstrip() == text.rstrip()


def test_a_value_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ConfigError, match="a value of the type date"):
        TOML.put("mcp_servers = { b = { c = 2020-01-01 } }", ("mcp_servers", "codex"), ENTRY)


def test_comments_between_tables_stay_with_the_other_table() -> None:
    text = "[a]\nx = 1\n\n[b]\ny = 2\n[b.c]\nz = 3\n\n# of d\n[d]\n"
    assert TOML.remove(text, ("b",)) == "[a]\nx = 1\n\n# of d\n[d]\n"
