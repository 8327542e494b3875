"""What an earlier build left on disk is read by this one.

tests/data/builds/<version>/ holds what that build wrote: `home`, three threads of Codex 0.163.0
(texts over 200 characters cut), `state`, the state folder after three runs, the third of them at
work when its server was killed, `times.json`, the rollouts' modification times in ns, and
`told.json`, what that build itself answered.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import cast

import pytest

from support.fake_codex import FakeCodex
from support.lab import Json, Lab, connect

BUILDS = sorted((Path(__file__).parent / "data" / "builds").iterdir())


@pytest.fixture(params=BUILDS, ids=[build.name for build in BUILDS])
def left(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Json]:
    """A copy of what a build left behind, and what it told of it."""
    build = cast("Path", request.param)
    place = tmp_path / "left"
    shutil.copytree(build, place)
    for path, mtime_ns in json.loads((place / "times.json").read_text()).items():
        os.utime(place / path, ns=(mtime_ns, mtime_ns))
    # An index is named for its home, which lies elsewhere now.
    key = f"{zlib.crc32(os.fsencode(place / 'home')):08x}"
    for index in (place / "state" / "history").glob("*.sqlite"):
        index.rename(index.with_name(index.name.replace(index.name[:8], key)))
    told = (place / "told.json").read_text().replace("@HOME@", str(place / "home"))
    return place, json.loads(told)


async def test_this_build_reads_the_state_that_an_earlier_one_left(
    mode: str, lab: Lab, fake: FakeCodex, left: tuple[Path, Json]
) -> None:
    place, told = left
    state = place / "state"
    indexes = {path: path.read_bytes() for path in (state / "history").glob("*.sqlite")}
    async with connect(
        mode,
        fake.build(),
        lab,
        *("--state-dir", str(state)),
        env={"CODEX_HOME": str(place / "home")},
    ) as client:

        async def ask(tool: str, **arguments: object) -> Json:
            answer = await client.call_tool(tool, arguments)
            return cast("Json", answer.structured_content)

        ids = [run["run_id"] for run in told["runs"]]
        runs = (await ask("codex_wait", run_ids=ids, wait_s=0))["runs"]
        usage = await ask("codex_usage", group_by="model", timezone="UTC")
        found = await ask("codex_sessions", query="hello")
        listed = await ask("codex_sessions", include_archived=True)
    for run, former in zip(runs, told["runs"], strict=True):
        assert {k: v for k, v in run.items() if k in former.keys() - {"error", "next"}} == {
            k: v for k, v in former.items() if k not in ("error", "next")
        }
        assert _kind(run) == _kind(former)
    assert (usage["totals"], usage["groups"]) == (told["usage"]["totals"], told["usage"]["groups"])
    assert usage["notes"] == []
    assert _facts(found) == _facts(told["sessions"])
    assert _facts(listed) == _facts(told["all"])
    assert {each["place"] for each in listed["sessions"]} == {"here"}
    # The build that made it may still be at work beside this one.
    assert {path: path.read_bytes() for path in indexes} == indexes


def _kind(run: Json) -> str | None:
    return run["error"] and run["error"]["kind"]


def _facts(listed: Json) -> list[Json]:
    """Return what time does not change, and what both builds tell.

    A thread at work then has ended since.
    """
    new = ("status", "place")
    return [{k: v for k, v in each.items() if k not in new} for each in listed["sessions"]]
