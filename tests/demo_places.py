"""Show runs at two other places: a real server and Codex, a scripted model. `make demo-places`.

Both places are on this machine, each with a Codex home and a state folder of its own: what lies
between them and the server is the same pipe as with ssh.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import anyio
from mcp import Client

from codex_tools.codex.json_object import Json
from mcp_server_codex.cli.scripted_model import Patch, Shell, do, model_name, say
from support.codex_versions import PINNED, number, real_codex
from support.isolated import apply
from support.lab import Lab, call, connect, environment, open_lab, server_program
from support.work_trees import run_git

VERSION = PINNED[1]


def write_places(lab: Lab, codex: Path) -> Path:
    """Write the file of places: two, by a plain command."""
    text = ""
    for name in ("box", "dev"):
        home = lab.root / f"{name}-home"
        lab.model.write_config(home, model=model_name(number(VERSION)))
        variables = environment(lab) | {"CODEX_HOME": str(home)}
        command = ["env", "-i", *(f"{key}={value}" for key, value in variables.items())]
        command += [server_program(), "worker", "--codex-bin", str(codex)]
        command += ["--state-dir", str(lab.root / f"{name}-state")]
        text += f'[{name}]\nworker = {json.dumps(shlex.join(command))}\nlabels = ["fast"]\n'
    file = lab.root / "places.toml"
    file.write_text(text)
    return file


def show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def show_result(result: Json) -> None:
    show(f"   {result['status']} at {result['place']}: {result['final_response']}")
    changes: Json = result["changes"] or {"files": []}
    for each in changes["files"]:
        lines = f"+{each['insertions']} -{each['deletions']}"
        show(f"   {each['kind']:6} {each['path']}  {lines}")


async def play(lab: Lab, client: Client) -> None:
    """Make the calls and show what comes of them."""
    project = lab.project
    first = lab.script(
        "Add the numbers in notes.txt to total.txt.",
        do(Patch("*** Add File: total.txt\n+6")),
        do(Shell("echo 'Their sum is in total.txt.' >> README")),
        say("The sum is in total.txt."),
    )
    more = lab.script("Double it.", do(Shell("echo 12 > total.txt")), say("It is 12 now."))
    other = lab.script("Count the lines of README.", do(Shell("wc -l README")), say("Two lines."))
    show("1. The project is not clean: README has a change, notes.txt is in no commit.")
    show("   " + run_git(project, "status", "--short").strip().replace("\n", "\n   "))
    turn: Json = {"sandbox": "workspace-write"}
    show("2. codex_run at box, and meanwhile at whichever place named `fast` is free.")
    begun = await call(client, "codex_run", prompt=first, place="box", wait_s=0, **turn)
    show_result(await call(client, "codex_run", prompt=other, place="fast", **turn))
    waited = await client.call_tool("codex_wait", {"run_ids": [begun["run_id"]], "wait_s": 60})
    assert waited.structured_content is not None
    (begun,) = waited.structured_content["runs"]
    show_result(begun)
    show(f"   Here, total.txt exists: {(project / 'total.txt').exists()}")
    show("3. codex_resume goes to the thread's place by itself, into the same copy.")
    resumed = await call(client, "codex_resume", prompt=more, thread_id=begun["thread_id"], **turn)
    show_result(resumed)
    show("4. codex_apply brings home what both turns changed there.")
    applied = await apply(client, resumed["run_id"], "apply")
    for each in applied["files"]:
        show(f"   {each['action']:6} {each['path']}")
    show("   " + run_git(project, "status", "--short").strip().replace("\n", "\n   "))
    show("5. codex_usage by place; the rollouts are at their places, and mirrored here.")
    answer = await client.call_tool("codex_usage", {"group_by": "place"})
    assert answer.structured_content is not None
    for group in answer.structured_content["groups"]:
        show(f"   {group['key']}: {group['total_tokens']} tokens")
    assert (project / "total.txt").read_text() == "12\n"
    places = {group["key"] for group in answer.structured_content["groups"]}
    assert places == {"box", "dev"}, places


async def main() -> None:
    """Make a lab, start the server and play the demo."""
    codex = real_codex(VERSION)
    with open_lab(VERSION) as lab:
        (lab.project / "README").write_text("A project.\n")
        run_git(lab.project, "add", "-A")
        run_git(lab.project, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "first")
        (lab.project / "README").write_text("A project with numbers.\n")
        (lab.project / "notes.txt").write_text("1\n2\n3\n")
        file = write_places(lab, codex)
        show(f"Codex {VERSION}, a scripted model, and this file of places:")
        for line in file.read_text().splitlines():
            show(f"   {line[:90]}{' ...' if len(line) > 90 else ''}")
        async with connect("auto", codex, lab, "--places", str(file)) as client:
            await play(lab, client)


if __name__ == "__main__":
    anyio.run(main)
