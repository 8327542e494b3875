"""A process that forks others, each of which indexes a home once.

It says 0 once it is ready. A line of JSON on stdin asks for one thing:
`{"home": ..., "state": ..., options}`
starts a process and `{"wait": pid}` waits for one. Either is answered by a line
with a number: its process id, its exit status. The options:

    out          a file to write all that the index tells to
    batch        how many files are read between two commits
    wait_s       how long it waits for another process's lock
    file_size    no file may grow beyond so many bytes
    stop_after   it stops itself once it has read so many files, the lock in hand
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from codex_tools.codex.errors import IndexUnavailable
from support.index_checks import PRICES, all_told, open_index

UNAVAILABLE = 3


def main() -> None:
    """Do what stdin asks for until it ends."""
    PRICES.of("gpt-5.4", 0)
    _say(0)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                os._exit(_index(asked))
        _say(answer)


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _index(asked: dict[str, Any]) -> int:
    sys.stdin.close()
    _set("BATCH_FILES", asked.get("batch"))
    _set("WAIT_S", asked.get("wait_s"))
    if (most := asked.get("file_size")) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    stop_after = asked.get("stop_after")

    def progress(done: int, total: int) -> None:
        if stop_after is not None and done >= stop_after:
            os.kill(os.getpid(), signal.SIGSTOP)

    with open_index(Path(asked["home"]), Path(asked["state"])) as history:
        try:
            history.refresh(progress)
            told = {"notes": history.notes} | (all_told(history) if "out" in asked else {})
            code = 0
        except IndexUnavailable as error:
            told, code = {"error": error.message}, UNAVAILABLE
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if "out" in asked:
        Path(asked["out"]).write_text(json.dumps(told))
    return code


def _set(name: str, value: float | None) -> None:
    """Set a public constant wherever it is used."""
    if value is None:
        return
    found = [
        module
        for key, module in sys.modules.items()
        if key.startswith("codex_tools.") and hasattr(module, name)
    ]
    assert found, f"there is no {name} any more"
    for module in found:
        setattr(module, name, value)


if __name__ == "__main__":
    main()
