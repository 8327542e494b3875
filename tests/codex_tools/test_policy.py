"""The operator's limits, which no caller can lift."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codex_tools.caller_config import SAFE_CONFIG
from codex_tools.codex.errors import InvalidArguments, NotAllowed, TooDeep
from codex_tools.codex.images import IMAGES_LIMIT
from codex_tools.codex.json_object import Json
from codex_tools.codex.program import Program
from codex_tools.codex.sandbox import WIDTH, Sandbox
from codex_tools.policy import CheckedTurn, Policy
from codex_tools.rollouts.threads import ThreadState
from codex_tools.tool import ask_for
from codex_tools.turn_options import TurnOptions
from support.lab import PNG

SANDBOXES: tuple[Sandbox, ...] = get_args(Sandbox)
HERE = Path(__file__).parent


CODEX = Program(Path("/bin/codex"), (0, 169, 0), "0.169.0", None, frozenset({"--ephemeral"}))


def check(policy: Policy, thread: ThreadState | None = None, **options: Any) -> CheckedTurn:
    """Check a turn in the folder *cwd*, by default one that is there."""
    asked = TurnOptions.model_validate({"prompt": "x", **options})
    return policy.check(asked, CODEX, default_cwd=HERE, depth=0, thread=thread)


def config(policy: Policy, values: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return check(policy, config=values).request.config


def refused(turn: CheckedTurn) -> list[str]:
    return [excess.option for excess in turn.excesses]


def left_by(sandbox: Sandbox) -> ThreadState:
    """A thread whose last turn ran with *sandbox*."""
    thread_id = "01a20661-b445-73e1-b566-c552cde98ccd"
    path = Path(f"/rollout-{thread_id}.jsonl")
    return ThreadState(thread_id, path, False, False, str(HERE), sandbox, "m", "low", None, 0)


@pytest.mark.parametrize("ceiling", SANDBOXES)
@pytest.mark.parametrize("asked", SANDBOXES)
def test_no_sandbox_is_wider_than_the_ceiling(asked: Sandbox, ceiling: Sandbox) -> None:
    policy = Policy(max_sandbox=ceiling)
    turn = check(policy, sandbox=asked)
    resumed = check(policy, left_by(asked))
    assert turn.request.sandbox == asked
    assert resumed.excesses == ()
    if SANDBOXES.index(asked) <= SANDBOXES.index(ceiling):
        assert turn.excesses == ()
        assert (resumed.request.sandbox, resumed.warnings) == (asked, ())
    else:
        (excess,) = turn.excesses
        assert asked in excess.message
        assert ceiling in excess.message
        assert "--max-sandbox" in excess.hint
        assert excess.danger
        assert resumed.request.sandbox == ceiling
        assert asked in resumed.warnings[0]


def test_the_sandboxes_are_ordered_from_narrow_to_wide() -> None:
    assert SANDBOXES == ("read-only", "workspace-write", "danger-full-access")
    assert sorted(WIDTH, key=WIDTH.__getitem__) == list(SANDBOXES)


def test_who_names_no_sandbox_gets_the_default_below_the_ceiling() -> None:
    for policy, sandbox in (
        (Policy(), "read-only"),
        (Policy(default_sandbox="workspace-write"), "workspace-write"),
        (Policy(default_sandbox="danger-full-access", max_sandbox="read-only"), "read-only"),
    ):
        turn = check(policy)
        assert turn.request.sandbox == sandbox
        assert turn.excesses == ()


def test_a_time_limit_is_the_caller_s_up_to_the_most() -> None:
    policy = Policy(timeout_s=100, max_timeout_s=200)
    for asked, limit in ((None, 100), (0.5, 0.5), (200.0, 200)):
        turn = check(policy, timeout_s=asked)
        assert (turn.request.timeout_s, turn.excesses) == (limit, ())
    (excess,) = check(policy, timeout_s=200.5).excesses
    assert "timeout_s 200.5 is not allowed: the maximum is 200" in excess.message
    assert check(Policy(timeout_s=300, max_timeout_s=200)).request.timeout_s == 200


def test_without_roots_any_path_will_do(tmp_path: Path) -> None:
    for cwd in (tmp_path, Path("/")):
        assert check(Policy(), cwd=str(cwd)).excesses == ()


def test_a_path_must_lie_inside_a_root(tmp_path: Path) -> None:
    root, other, outside = (tmp_path / name for name in ("root", "other", "root-not"))
    for folder in (root / "sub", other, root / "new" / "deep", outside):
        folder.mkdir(parents=True)
    policy = Policy(roots=(root, other))
    for path in (root, root / "sub", other, root / "new" / "deep"):
        assert check(policy, cwd=str(path)).excesses == ()
    for path in (outside, tmp_path, Path("/")):
        (excess,) = check(policy, cwd=str(root), add_dirs=[str(path)]).excesses
        assert f"add_dirs {path}" in excess.message
        assert str(other) in excess.message
        assert excess.option == "--root"


def test_a_run_that_would_be_nested_too_deeply_is_refused_before_all_else() -> None:
    asked = TurnOptions.model_validate({"prompt": "x", "cwd": "/not/there"})
    for depth, most in ((1, 1), (2, 1), (3, 3)):
        with pytest.raises(TooDeep):
            Policy(max_depth=most).check(asked, CODEX, default_cwd=HERE, depth=depth)
    options = TurnOptions.model_validate({"prompt": "x"})
    nested = Policy(max_depth=3).check(options, CODEX, default_cwd=HERE, depth=2)
    assert nested.request.depth == 3


def test_a_folder_whose_name_is_not_utf_8_is_refused_by_that_reason(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    for cwd in (None, str(tmp_path / "link")):
        asked = TurnOptions.model_validate({"prompt": "x", "cwd": cwd})
        with pytest.raises(InvalidArguments, match=r"not UTF-8|is not a folder"):
            Policy().check(asked, CODEX, default_cwd=folder, depth=0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A person's home in a folder of all homes, with CODEX_HOME and the state folder in it."""
    for name in ("me/.codex/sub", "me/project", "me/state/runs", "elsewhere"):
        (tmp_path / "homes" / name).mkdir(parents=True)
    return tmp_path / "homes"


def policy_in(place: Path, *roots: str) -> Policy:
    return Policy(
        roots=tuple(place / root for root in roots),
        home=place / "me",
        codex_home=place / "me/.codex",
        state_dir=place / "me/state",
    )


@pytest.mark.parametrize("sandbox", SANDBOXES)
@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("/", False),
        ("", False),
        ("me", False),
        ("me/.codex", False),
        ("me/.codex/sub", False),
        ("me/state", False),
        ("me/state/runs", False),
        ("me/project", True),
        ("elsewhere", True),
    ],
)
def test_no_run_writes_where_it_could_give_the_next_one_any_right(
    place: Path, folder: str, sandbox: Sandbox, allowed: bool
) -> None:
    policy = replace(policy_in(place), max_sandbox="danger-full-access")
    turn = check(policy, cwd=str(place / folder), sandbox=sandbox)
    assert refused(turn) == ([] if allowed or sandbox == "read-only" else ["--root"])


@pytest.mark.parametrize(
    ("root", "folder", "allowed"),
    [
        ("me", "me", True),
        ("me", "me/.codex", False),
        ("", "me", False),
        ("me/.codex", "me/.codex", True),
        ("me/.codex", "me/.codex/sub", True),
        ("me/.codex/sub", "me/.codex/sub", True),
        ("me/.codex/sub", "me/.codex", False),
        ("/", "/", True),
        ("/", "me", False),
    ],
)
def test_a_root_that_names_the_very_place_lets_it_be_written(
    place: Path, root: str, folder: str, allowed: bool
) -> None:
    policy = policy_in(place, root)
    (cwd,) = policy.roots
    inside = (place / folder).is_relative_to(cwd)
    turn = check(policy, cwd=str(place / folder), sandbox="workspace-write")
    excesses = [excess for excess in turn.excesses if "is outside the roots" not in excess.limit]
    assert (excesses == []) is allowed
    assert (len(turn.excesses) == len(excesses)) is inside


def test_a_place_is_known_by_what_it_is_not_by_its_name(place: Path) -> None:
    (place / "alias").symlink_to(place / "me")
    turn = check(policy_in(place), cwd=str(place / "alias"), sandbox="workspace-write")
    assert refused(turn) == ["--root"]


def test_the_question_to_a_person_tells_what_where_and_why_and_nothing_can_forge_it() -> None:
    turn = check(Policy(), sandbox="danger-full-access")
    prompt = "do it\n\nAccept, this is harmless\u202e\x1b[2J" + "x" * 1000
    request = replace(turn.request, cwd=Path("/pro\u202eject"), prompt=prompt)
    question = ask_for(replace(turn, request=request))
    assert "sandbox danger-full-access" in question
    assert "delete any of your files" in question
    assert "Folder: /pro\N{REPLACEMENT CHARACTER}ject" in question
    assert question.isprintable() is False  # Its own line breaks, and
    assert all(line.isprintable() for line in question.split("\n"))
    assert len(question.split("\n")) == 7
    assert len(question) < 1500
    assert f"without its last {len(prompt) - 300} characters" in question


@pytest.mark.parametrize(
    "prompt",
    [
        'list"\nSandbox: read-only\nThe task: "harmless',
        'list"\u2028Accept to allow this once.\r"',
        'a\\" b \u201d " c',
        '"',
    ],
)
def test_a_prompt_stands_last_in_the_question_on_one_line_between_its_own_quotes(
    prompt: str,
) -> None:
    question = ask_for(check(Policy(), sandbox="danger-full-access", prompt=prompt))
    *before, last = question.split("\n")
    head, _, quoted = last.partition(": ")
    assert head == "The task"
    assert json.loads(quoted) == " ".join(prompt.split())
    assert [line.partition(":")[0] for line in before[3:5]] == ["Folder", "Sandbox"]
    assert before[-1].startswith("Accept to allow this once.")


def test_the_end_of_a_long_path_is_in_the_question(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["d" * 200] * 4, "secret")
    folder.mkdir(parents=True)
    question = ask_for(check(Policy(roots=(HERE,)), cwd=str(folder)))
    assert question.count("dd/secret") == 2


def test_the_safe_config_keys_are_free_and_no_other() -> None:
    assert config(Policy(), dict.fromkeys(SAFE_CONFIG, True)) == tuple(
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
            config(Policy(), {"web_search": "live", key: True})
        assert key in caught.value.message
        assert caught.value.option == "--allow-config"


def test_an_operator_s_glob_frees_further_keys() -> None:
    policy = Policy(allow_config=("mcp_servers.*.enabled", "model_provider"))
    assert config(policy, {"mcp_servers.a.enabled": True, "model_provider": "x"}) == (
        ("mcp_servers.a.enabled", "true"),
        ("model_provider", '"x"'),
    )
    for key in ("mcp_servers.a.command", "Model_Provider", "model_providers"):
        with pytest.raises(NotAllowed):
            config(policy, {key: 1})


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
        config(Policy(allow_config=("*",)), {key: 1})


@pytest.mark.parametrize("value", [None, [None], {"a": None}, [{"a": [1, None]}]])
def test_null_has_no_form_in_toml(value: object) -> None:
    with pytest.raises(InvalidArguments, match=r"config\.web_search: null"):
        config(Policy(), {"web_search": value})


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
    (pair,) = config(Policy(), {"web_search": value})
    assert tomllib.loads("=".join(pair)) == {"web_search": value}


@pytest.mark.parametrize(
    "text", ['"', '"\nsandbox_mode="x', "'''", "\\", "\x7f\x00\x1b", "\u2028", "${HOME}", "a\r\nb"]
)
def test_a_hostile_string_stays_one_string(text: str) -> None:
    (pair,) = config(Policy(), {"web_search": text})
    assert "\n" not in pair[1]
    assert tomllib.loads("=".join(pair)) == {"web_search": text}


@pytest.mark.parametrize("field", ["state_dir", "cache_dir"])
def test_no_writable_folder_holds_or_is_inside_a_folder_of_this_server(
    tmp_path: Path, field: str
) -> None:
    own = tmp_path / ".local" / "share" / "mcp-server-codex"
    (own / "runs").mkdir(parents=True)
    project = tmp_path / "project"
    project.mkdir()
    policy = replace(Policy(), **cast("Any", {field: own}))
    for folder in (tmp_path / ".local", own.parent, own, own / "runs"):
        turn = check(policy, cwd=str(folder), sandbox="workspace-write")
        assert refused(turn) == ["--root"], folder
        dirs = [str(folder)]
        more = check(policy, cwd=str(project), add_dirs=dirs, sandbox="workspace-write")
        assert refused(more) == ["--root"], folder
        assert refused(check(policy, cwd=str(folder), sandbox="read-only")) == []
    assert refused(check(policy, cwd=str(project), sandbox="workspace-write")) == []


def test_images_have_a_limit_in_all(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        with (tmp_path / name).open("wb") as file:
            file.write(PNG)
            file.truncate(IMAGES_LIMIT // 2 + 1)
    os.mkfifo(tmp_path / "pipe.png")
    assert check(Policy(), cwd=str(tmp_path), images=["a.png"]).request.images
    with pytest.raises(InvalidArguments, match=r"b\.png of 26,214,401 bytes.* 52,428,800 bytes"):
        check(Policy(), cwd=str(tmp_path), images=["a.png", "b.png"])
    with pytest.raises(InvalidArguments):
        check(Policy(), cwd=str(tmp_path), images=["pipe.png"])


LIMITS = {
    'web_search = "disabled"': "disabled",
    "tools.web_search = false": "disabled",
    "features.web_search_request = false": "disabled",
    'web_search = "cached"': "cached",
}


@pytest.mark.parametrize("layer", LIMITS)
def test_no_caller_lifts_the_person_s_limit_of_web_search(tmp_path: Path, layer: str) -> None:
    (tmp_path / "config.toml").write_text(f"{layer}\n")
    policy = Policy(codex_home=tmp_path)
    wider: list[Json] = [{"config": {"web_search": value}} for value in ("live", "", True, 0)]
    if LIMITS[layer] == "disabled":
        wider += [{"web_search": True}, {"config": {"web_search": "cached"}}]
        wider += [{"config": {"tools.web_search": value}} for value in (True, 0, {"a": 1})]
        wider.append({"web_search": True, "config": {"web_search": "disabled"}})
    for options in wider:
        with pytest.raises(NotAllowed, match=LIMITS[layer]) as caught:
            check(policy, **options)
        assert "Codex's configuration" in caught.value.hint
    narrower: list[Json] = [{}, {"web_search": False}, {"config": {"web_search": "disabled"}}]
    narrower.append({"config": {"tools.web_search": False}})
    for options in narrower:
        # 0.98.0 reads no limit in requirements.toml, so it is told.
        is_off = LIMITS[layer] == "disabled" and not options
        expected = False if is_off else options.get("web_search")
        assert check(policy, **options).request.web_search is expected
    operator = replace(policy, allow_config=("web_search",))
    assert check(operator, config={"web_search": "live"}).request.config


def test_with_cached_search_a_caller_gets_cached_search(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('web_search = "cached"\n')
    turn = check(Policy(codex_home=tmp_path), web_search=True)
    assert turn.request.web_search is None
    assert any('"cached"' in warning for warning in turn.warnings)
    (tmp_path / "config.toml").write_text('web_search = "live"\n')
    turn = check(Policy(codex_home=tmp_path), web_search=True, config={"web_search": "live"})
    assert (turn.request.web_search, turn.warnings) == (True, ())
