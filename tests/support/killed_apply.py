"""Take a snapshot, lay it out, change the copy and apply that; die at the Nth counted call.

python -m support.killed_apply STATE ROOT STEP N

Counts the calls that open, rename, delete or make files, or start programs, from the beginning of
STEP (snapshot, lay_out, changes or apply). Prints their number if it comes to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from codex_tools.worktree.apply_plan import make_plan
from codex_tools.worktree.copies import lay_out
from codex_tools.worktree.journal import apply_plan
from codex_tools.worktree.shadow import Shadow
from codex_tools.worktree.snapshot import take_snapshot
from codex_tools.worktree.tree_changes import changes_of

COUNTED = frozenset(
    ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "subprocess.Popen")
)


def change(folder: Path) -> None:
    """Change, add and delete files of the test's project."""
    for number in range(0, 12, 2):
        (folder / f"f{number}").write_text(f"run {number}\n")
    for number in range(1, 6, 2):
        (folder / f"f{number}").unlink()
    (folder / "new" / "deep").mkdir(parents=True)
    for number in range(4):
        (folder / "new" / "deep" / f"n{number}").write_text("new\n")
    (folder / "gone" / "only").unlink()
    (folder / "gone").rmdir()
    (folder / "gone").write_text("a file now\n")
    (folder / "link").unlink()
    (folder / "link").symlink_to("f2")


def main() -> None:
    state, root, step, last = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    now = {"step": "", "count": 0}

    def count(event: str, arguments: tuple[object, ...]) -> None:
        del arguments
        if event in COUNTED and now["step"] == step:
            now["count"] = int(now["count"]) + 1
            if now["count"] == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    now["step"] = "snapshot"
    shadow = Shadow.open(state, root)
    snapshot = take_snapshot(shadow)
    now["step"] = "lay_out"
    copy = lay_out(shadow, snapshot)
    now["step"] = "work"
    change(copy.folder)
    now["step"] = "changes"
    changes = changes_of(shadow, snapshot, copy)
    plan = make_plan(shadow, changes)
    now["step"] = "apply"
    apply_plan(shadow, plan)
    now["step"] = ""
    sys.stdout.write(f"{now['count']}\n")


if __name__ == "__main__":
    main()
