"""Show runs at three other places, of which one is killed: `make demo-places`.

A real server and real Codex, a scripted model. All places are on this machine, each with a Codex
home and a state folder of its own: between them and the server is the same pipe as with ssh.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import cast

import anyio
from mcp import Client

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.scripted_model import Patch, Shell, do, model_name, say
from support.codex_versions import PINNED, number, real_codex
from support.far_machine import living
from support.isolated import apply
from support.lab import Lab, call, connect, environment, open_lab, server_program, until
from support.work_trees import run_git

VERSION = PINNED[1]

PLACES = ("box", "dev", "lab")

LEASE_S = 5
"""A short lease, so that nobody has to watch this for a minute."""

ANSWER_AFTER_S = 10.0
"""Seconds that the model takes for its last words: meanwhile, a place is killed."""

TURN: Json = {"sandbox": "workspace-write"}


def write_places(lab: Lab, codex: Path) -> Path:
    """Write the file of places: three, by a plain command."""
    text = ""
    for name in PLACES:
        home = lab.root / f"{name}-home"
        lab.model.write_config(home, model=model_name(number(VERSION)))
        variables = environment(lab) | {"CODEX_HOME": str(home), "DEMO_PLACE": tag(lab, name)}
        argv = ["env", "-i", *(f"{key}={value}" for key, value in variables.items())]
        worker = f"{server_program()} worker --codex-bin {codex}"
        worker += f" --state-dir {lab.root / f'{name}-state'}"
        text += f"[{name}]\nargv = {json.dumps(argv)}\nworker = {json.dumps(worker)}\n"
        text += f'max_runs = 3\nlease_s = {LEASE_S}\nlabels = ["fast"]\n'
    file = lab.root / "places.toml"
    file.write_text(text)
    return file


def tag(lab: Lab, place: str) -> str:
    """Return what marks the processes of a place."""
    return f"{place}-of-{lab.root.name}"


def show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def show_result(word: str, result: Json) -> None:
    changes: Json = result["changes"] or {"files": []}
    files = ", ".join(f"{each['kind']} {each['path']}" for each in changes["files"])
    error = result["error"]
    said = result["final_response"]
    if error:
        said = f"{error['kind']}: {error['message'].partition('. ')[0]}"
    show(f"   {word:7} {result['status']:9} at {result['place']}  {said}")
    show(f"           changed there: {files or 'nothing'}")


async def results(client: Client, run_ids: list[str], wait_s: float) -> list[Json]:
    answer = await client.call_tool("codex_wait", {"run_ids": run_ids, "wait_s": wait_s})
    return list(cast("Json", answer.structured_content)["runs"])


def script(lab: Lab, each: int) -> str:
    """Write the script of one run; return its prompt."""
    return lab.script(
        f"Write part {each}.",
        do(Patch(f"*** Add File: part-{each}.txt\n+part {each}")),
        do(Shell(f"echo 'read from notes: '$(sed -n {each}p notes.txt) >> part-{each}.txt")),
        say(f"Part {each} is written.", delay_s=ANSWER_AFTER_S),
    )


async def kill_a_place(lab: Lab, client: Client, run_ids: list[str], prompts: list[str]) -> str:
    """Kill all processes of the first place whose runs wait for the model's last words."""
    ran = await results(client, run_ids, 0)
    victim = PLACES[-1]
    there = {p for p, run in zip(prompts, ran, strict=True) if run["place"] == victim}

    def is_amid() -> bool:
        asked = Counter(seen.prompt for seen in [*lab.model.requests])
        return all(asked[prompt] >= 3 for prompt in there)

    await until(is_amid)
    killed = living(f"DEMO_PLACE={tag(lab, victim)}")
    for pid in killed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    show(f"   killed {len(killed)} processes: each worker, each guard, each Codex at {victim}")
    return victim


async def play(lab: Lab, client: Client) -> None:
    """Make the calls and show what comes of them."""
    project = lab.project
    prompts = [script(lab, each) for each in range(1, 9)]
    onward = lab.script("Go on.", do(Shell("ls part-*.txt")), say("It was written already."))
    show("1. The project is not clean: README has a change, notes.txt is in no commit.")
    show("   " + run_git(project, "status", "--short").strip().replace("\n", "\n   "))
    show("2. Eight runs at once, each at whichever place named `fast` has the fewest.")
    run_ids = [
        (await call(client, "codex_run", prompt=each, place="fast", wait_s=0, **TURN))["run_id"]
        for each in prompts
    ]
    counts = Counter(run["place"] for run in await results(client, run_ids, 0))
    show("   " + ", ".join(f"{counts[name]} at {name}" for name in PLACES))
    show("3. One place is killed in the middle: SIGKILL for all that it runs.")
    victim = await kill_a_place(lab, client, run_ids, prompts)
    began = time.monotonic()
    ended: list[Json] = []
    while any(run["status"] in ("queued", "running") for run in ended or [{"status": "queued"}]):
        ended = await results(client, run_ids, 60)
    show(
        f"4. All have ended {time.monotonic() - began:.0f} s later. The others were not disturbed."
    )
    for each, run in enumerate(ended, 1):
        show_result(f"part {each}", run)
    lost = [run for run in ended if run["error"]]
    assert {run["error"]["kind"] for run in lost} == {"place_lost"}, lost
    assert {run["place"] for run in lost} == {victim}
    assert all(run["place"] != victim for run in ended if run["status"] == "completed")
    show("   The lost ones were not started again. What they had done was fetched by a new worker.")
    show(f"   Processes of {victim} that are still alive: {len(living(tag(lab, victim)))}")
    show("5. codex_resume continues a lost thread at its place, which is there again.")
    resumed = await call(
        client, "codex_resume", prompt=onward, thread_id=lost[0]["thread_id"], **TURN
    )
    show_result("resumed", resumed)
    assert resumed["status"] == "completed"
    show(f"6. codex_apply brings home what all did. Until now here: {names(project) or 'nothing'}")
    for run in [*(each for each in ended if each["run_id"] != lost[0]["run_id"]), resumed]:
        applied = await apply(client, run["run_id"], "apply")
        for each in applied["files"]:
            show(f"   {run['place']}: {each['action']} {each['path']}")
    show("   " + run_git(project, "status", "--short").strip().replace("\n", "\n   "))
    assert names(project) == " ".join(f"part-{each}.txt" for each in range(1, 9))
    show("7. codex_usage by place; the rollouts are at their places, and mirrored here.")
    answer = await client.call_tool("codex_usage", {"group_by": "place"})
    groups = cast("Json", answer.structured_content)["groups"]
    for group in groups:
        show(f"   {group['key']}: {group['total_tokens']} tokens")
    assert {group["key"] for group in groups} == {*PLACES}, groups


def names(project: Path) -> str:
    return " ".join(sorted(each.name for each in project.glob("part-*.txt")))


async def main() -> None:
    """Make a lab, start the server and play the demo."""
    codex = real_codex(VERSION)
    with open_lab(VERSION) as lab:
        (lab.project / "README").write_text("A project.\n")
        run_git(lab.project, "add", "-A")
        run_git(lab.project, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "first")
        (lab.project / "README").write_text("A project with notes.\n")
        (lab.project / "notes.txt").write_text("".join(f"note {n}\n" for n in range(1, 9)))
        file = write_places(lab, codex)
        show(f"Codex {VERSION}, a scripted model, and this file of places:")
        for line in file.read_text().splitlines():
            show(f"   {line[:70]}{' ...' if len(line) > 70 else ''}")
        async with connect("auto", codex, lab, "--places", str(file)) as client:
            await play(lab, client)


if __name__ == "__main__":
    anyio.run(main)
