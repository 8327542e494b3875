"""Which Codex is met in which era: each in each test, but not each pair of them.

An era of the protocol is a matter of how the server is asked, a version of how
Codex is run, and no code sees both: the four pairs of two eras and two versions
tell nothing that two of them do not, if these hold all four values. Which two
it is changes from test to test, so that all pairs are met all the same.
Tests marked `every_pair` have a reason to meet all, and with EVERY_PAIR=1 in the
environment all do.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from zlib import crc32

import pytest

from codex_tools.engines.app_server_preparation import OLDEST_BY_NAME
from support.codex_versions import number

EVERY_PAIR = bool(os.environ.get("EVERY_PAIR"))


def without_engine(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Return the tests by an engine that their Codex does not have."""
    left_out: list[pytest.Item] = []
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            given = item.callspec.params
            by_it = given.get("each_engine") == "app-server" and "version" in given
            if by_it and number(str(given["version"])) < OLDEST_BY_NAME:
                left_out.append(item)
    return left_out


def beyond_pairs(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Return the tests to leave out: those that pair values each of which another one has."""
    if EVERY_PAIR:
        return []
    alike: dict[str, list[tuple[str, str, pytest.Item]]] = defaultdict(list)
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("every_pair"):
            continue
        given = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        if given.keys() >= {"version", "mode"}:
            version, mode = str(given.pop("version")), str(given.pop("mode"))
            name = f"{item.nodeid.partition('[')[0]} {given}"
            alike[name].append((version, mode, item))
    left_out: list[pytest.Item] = []
    for name, found in alike.items():
        versions = sorted({version for version, _, _ in found})
        modes = sorted({mode for _, mode, _ in found})
        if len(versions) > 1 and len(modes) > 1:
            turn = crc32(name.encode())
            left_out += [
                item
                for version, mode, item in found
                if (versions.index(version) + modes.index(mode) + turn) % 2
            ]
    return left_out
