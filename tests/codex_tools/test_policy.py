"""The operator's limits, which no caller can lift."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codex_tools.codex.errors import InvalidArguments, NotAllowed
from codex_tools.codex.sandbox import WIDTH, Sandbox
from codex_tools.policy import SAFE_CONFIG, Policy

SANDBOXES: tuple[Sandbox, ...] = get_args(Sandbox)


@pytest.mark.parametrize("ceiling", SANDBOXES)
@pytest.mark.parametrize("asked", SANDBOXES)
def test_no_sandbox_is_wider_than_the_ceiling(asked: Sandbox, ceiling: Sandbox) -> None:
    policy = Policy(max_sandbox=ceiling)
    if SANDBOXES.index(asked) <= SANDBOXES.index(ceiling):
        assert policy.sandbox_for(asked) == asked
        assert policy.narrowed(asked) == asked
    else:
        with pytest.raises(NotAllowed) as caught:
            policy.sandbox_for(asked)
        assert asked in caught.value.message
        assert ceiling in caught.value.message
        assert "--max-sandbox" in caught.value.hint
        assert policy.narrowed(asked) == ceiling


def test_the_sandboxes_are_ordered_from_narrow_to_wide() -> None:
    assert SANDBOXES == ("read-only", "workspace-write", "danger-full-access")
    assert sorted(WIDTH, key=WIDTH.__getitem__) == list(SANDBOXES)


def test_who_names_no_sandbox_gets_the_default_below_the_ceiling() -> None:
    assert Policy().sandbox_for(None) == "read-only"
    assert Policy(default_sandbox="workspace-write").sandbox_for(None) == "workspace-write"
    tight = Policy(default_sandbox="danger-full-access", max_sandbox="read-only")
    assert tight.sandbox_for(None) == "read-only"


def test_a_time_limit_is_the_caller_s_up_to_the_most() -> None:
    policy = Policy(timeout_s=100, max_timeout_s=200)
    assert policy.timeout_for(None) == 100
    assert policy.timeout_for(0.5) == 0.5
    assert policy.timeout_for(200) == 200
    with pytest.raises(NotAllowed, match=r"timeout_s 200\.5 is not allowed: the most is 200"):
        policy.timeout_for(200.5)
    assert Policy(timeout_s=300, max_timeout_s=200).timeout_for(None) == 200


def test_without_roots_any_path_will_do(tmp_path: Path) -> None:
    Policy().check_inside("cwd", tmp_path)
    Policy().check_inside("cwd", Path("/"))


def test_a_path_must_lie_inside_a_root_once_its_links_are_resolved(tmp_path: Path) -> None:
    root, other, outside = (tmp_path / name for name in ("root", "other", "root-not"))
    for folder in (root / "sub", other, outside):
        folder.mkdir(parents=True)
    (root / "out").symlink_to(outside)
    (outside / "in").symlink_to(root / "sub")
    policy = Policy(roots=(root, other))
    inside = [root, root / "sub", other, root / "new" / "file", outside / "in", root / "a" / ".."]
    for path in inside:
        policy.check_inside("cwd", path)
    for path in (outside, tmp_path, root / "..", root / "out", root / "out" / "x", Path("/")):
        with pytest.raises(NotAllowed) as caught:
            policy.check_inside("add_dirs", path)
        assert f"add_dirs {path}" in caught.value.message
        assert str(other) in caught.value.message
        assert caught.value.option == "--root"


def test_the_safe_config_keys_are_free_and_no_other() -> None:
    assert Policy().config_for(dict.fromkeys(SAFE_CONFIG, True)) == tuple(
        (key, "true") for key in SAFE_CONFIG
    )
    for key in (
        "sandbox_mode",
        "approval_policy",
        "sandbox_workspace_write.network_access",
        "mcp_servers.x.command",
        "shell_environment_policy.set",
        "model_provider",
        "model_verbosity.x",
        "web_searching",
        "tools",
        "WEB_SEARCH",
    ):
        with pytest.raises(NotAllowed) as caught:
            Policy().config_for({"web_search": "live", key: True})
        assert key in caught.value.message
        assert caught.value.option == "--allow-config"


def test_an_operator_s_glob_frees_further_keys() -> None:
    policy = Policy(allow_config=("mcp_servers.*.enabled", "model_provider"))
    assert policy.config_for({"mcp_servers.a.enabled": False, "model_provider": "x"}) == (
        ("mcp_servers.a.enabled", "false"),
        ("model_provider", '"x"'),
    )
    for key in ("mcp_servers.a.command", "Model_Provider", "model_providers"):
        with pytest.raises(NotAllowed):
            policy.config_for({key: 1})


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a=1",
        'a."b"',
        "a\n",
        "a.b\nsandbox_mode",
        "\u00e4",
        "a[0]",
    ],
)
def test_a_key_is_a_plain_dotted_one_even_where_all_are_free(key: str) -> None:
    with pytest.raises(InvalidArguments, match="is not a dotted key"):
        Policy(allow_config=("*",)).config_for({key: 1})


@pytest.mark.parametrize("value", [None, [None], {"a": None}, [{"a": [1, None]}]])
def test_null_has_no_form_in_toml(value: object) -> None:
    with pytest.raises(InvalidArguments, match=r"config\.web_search: null"):
        Policy().config_for({"web_search": value})


VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(VALUES)
def test_a_value_stays_what_it_is_and_cannot_reach_past_its_key(value: Any) -> None:
    (pair,) = Policy().config_for({"web_search": value})
    assert tomllib.loads("=".join(pair)) == {"web_search": value}


@pytest.mark.parametrize(
    "text", ['"', '"\nsandbox_mode="x', "'''", "\\", "\x7f\x00\x1b", "\u2028", "${HOME}", "a\r\nb"]
)
def test_a_hostile_string_stays_one_string(text: str) -> None:
    (pair,) = Policy().config_for({"web_search": text})
    assert "\n" not in pair[1]
    assert tomllib.loads("=".join(pair)) == {"web_search": text}
