"""The operator's file of places is read strictly, and each error says where it is."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from codex_tools.places.place import Place, PlacesError, read_places


def _read(folder: Path, text: str) -> dict[str, Place]:
    file = folder / "places.toml"
    file.write_text(text)
    return read_places(file)


def test_a_host_becomes_ssh_without_terminal_and_escapes(tmp_path: Path) -> None:
    box = _read(tmp_path, '[box]\nssh = "build-box"\nmax_runs = 8\n')["box"]
    assert box.command[:4] == ("ssh", "-T", "-e", "none")
    assert box.command[-2:] == ("build-box", "mcp-server-codex worker")
    assert (box.max_runs, box.lease_s, box.carry) == (8, 60.0, False)


def test_an_argv_gets_the_worker_as_words(tmp_path: Path) -> None:
    text = '[dev]\nargv = ["docker", "exec", "-i", "dev"]\nworker = "/opt/my\\\\ py/w worker"\n'
    dev = _read(tmp_path, text)["dev"]
    assert dev.command == ("docker", "exec", "-i", "dev", "/opt/my py/w", "worker")


def test_all_keys_are_read(tmp_path: Path) -> None:
    text = (
        '[c]\nssh = "head"\nray = { python = "/opt/py", resources = { codex = 2 } }\n'
        "starts_at_once = 3\nlease_s = 20\nkeep_days = 1\nkeep_history_days = 30\n"
        "max_tree_mb = 50\ncarry = true\n"
        'labels = ["gpu"]\n[here]\nmax_runs = 2\n'
    )
    found = _read(tmp_path, text)
    place = found["c"]
    assert place.ray is not None
    assert (place.ray.python, place.ray.address) == ("/opt/py", "auto")
    assert place.ray.resources == {"codex": 2.0}
    assert (place.starts_at_once, place.lease_s, place.keep_days) == (3, 20.0, 1.0)
    assert place.keep_history_days == 30.0
    assert (place.max_tree_mb, place.carry, place.labels) == (50.0, True, ("gpu",))
    assert found["here"].max_runs == 2


def test_a_ray_place_sends_its_program_as_one_word(tmp_path: Path) -> None:
    ray = 'ray = { python = "/opt/my py", token_file = "/etc/t" }\n'
    here = _read(tmp_path, f"[c]\n{ray}")["c"]
    shown = here.command
    assert shown[:3] == ("/opt/my py", "-c", "ray_place.py")
    assert shown[3:] == (
        *("--address", "auto", "--resources", '{"codex": 1}', "--token-file", "/etc/t"),
        "mcp-server-codex worker",
    )
    sent = here.command_to_run()
    compile(sent[2], "ray_place.py", "exec")
    assert (*sent[:2], "ray_place.py", *sent[3:]) == shown
    assert replace(here, node="10.0.0.2").command[-3:-1] == ("--node", "10.0.0.2")
    # By ssh it is one text for the shell there, which splits it into the same words.
    far = _read(tmp_path, f'[c]\nssh = "head"\n{ray}')["c"]
    assert far.command_to_run()[:-1] == far.argv
    assert tuple(shlex.split(far.command_to_run()[-1])) == sent


def test_only_a_ray_place_sends_a_program_or_asks_for_a_node(tmp_path: Path) -> None:
    box = _read(tmp_path, '[box]\nssh = "h"\n')["box"]
    assert replace(box, node="10.0.0.2").command_to_run() == box.command


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        ("x = 1\n", "x", "table"),
        ('[any]\nssh = "h"\n', "[any]", "no name"),
        ('["A b"]\nssh = "h"\n', "[A b]", "no name"),
        ('["../up"]\nssh = "h"\n', "[../up]", "no name"),
        ("[b]\n", "[b] ssh", "missing"),
        ('[b]\nssh = "-oProxyCommand=x"\n', "[b] ssh", "host"),
        ('[b]\nssh = "a b"\n', "[b] ssh", "host"),
        ('[b]\nssh = ""\n', "[b] ssh", "host"),
        ("[b]\nssh = 3\n", "[b] ssh", "text"),
        ('[b]\nssh = "h"\nargv = ["x"]\n', "[b] argv", "beside ssh"),
        ('[b]\nargv = "x"\n', "[b] argv", "list"),
        ('[b]\nray = { python = "p", token_file = 3 }\n', "[b.ray] token_file", "text"),
        ('[b]\nargv = [""]\n', "[b] argv", "empty"),
        ('[b]\nargv = ["a\\u0000b"]\n', "[b] argv", "list"),
        ('[b]\nssh = "h"\nmaxruns = 3\n', "[b] maxruns", "no key"),
        ('[b]\nssh = "h"\nmax_runs = 0\n', "[b] max_runs", "from 1"),
        ('[b]\nssh = "h"\nmax_runs = 2.5\n', "[b] max_runs", "whole"),
        ('[b]\nssh = "h"\nmax_runs = true\n', "[b] max_runs", "whole"),
        ('[b]\nssh = "h"\nlease_s = 0.1\n', "[b] lease_s", "from 2"),
        ('[b]\nssh = "h"\nlease_s = nan\n', "[b] lease_s", "from 2"),
        ('[b]\nssh = "h"\nlease_s = inf\n', "[b] lease_s", "from 2"),
        ('[b]\nssh = "h"\nlease_s = "60"\n', "[b] lease_s", "number"),
        ('[b]\nssh = "h"\ncarry = 1\n', "[b] carry", "true or false"),
        ('[b]\nssh = "h"\nworker = "a \'b"\n', "[b] worker", "command"),
        ('[b]\nssh = "h"\nworker = " "\n', "[b] worker", "command"),
        ('[b]\nssh = "h"\nlabels = [1]\n', "[b] labels", "texts"),
        ("[b]\nray = 1\n", "[b] ray", "table"),
        ("[b]\nray = { }\n", "[b.ray] python", "missing"),
        ('[b]\nray = { python = "p", x = 1 }\n', "[b.ray] x", "no key"),
        ('[b]\nray = { python = "p", resources = { a = "1" } }\n', "[b.ray.resources] a", "number"),
        ('[here]\nssh = "h"\n', "[here] ssh", "no key"),
    ],
)
def test_an_error_names_the_file_the_table_and_the_key(
    tmp_path: Path, text: str, where: str, problem: str
) -> None:
    with pytest.raises(PlacesError) as caught:
        _read(tmp_path, text)
    assert caught.value.where == where
    assert problem in caught.value.problem
    assert str(caught.value).startswith(f"{tmp_path / 'places.toml'}: {where}: ")


@pytest.mark.parametrize("content", [b"[b", b"\xff", b"a = 1\na = 2\n"])
def test_a_file_that_is_no_toml_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "places.toml"
    file.write_bytes(content)
    with pytest.raises(PlacesError, match=r"places\.toml"):
        read_places(file)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(PlacesError, match=r"places\.toml: it cannot be read"):
        read_places(tmp_path / "places.toml")
