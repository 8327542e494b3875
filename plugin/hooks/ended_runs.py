"""Tell Claude Code of its Codex runs that ended in the background and were not fetched.

A hook for SessionStart, UserPromptSubmit and Stop. It reads the end of the server's audit log and
imports only the standard library: it runs at each prompt. A run is named once. Any fault ends it
quietly, since a hook must not disturb the session.
"""

import json
import os
import sys

READ = 256 * 1024
"""Bytes of the audit log's end that are read."""

MOST = 8
"""Maximum number of runs that are named at once."""


def state_folder():
    """Return the folder in which the server keeps its runs."""
    named = os.environ.get("MCP_SERVER_CODEX_STATE_DIR")
    if named:
        return os.path.expanduser(named)
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Application Support/mcp-server-codex")
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "mcp-server-codex")


def entries(path):
    """Yield the newest entries of the audit log, the oldest first."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        file.seek(max(0, size - READ))
        lines = file.read(READ).split(b"\n")
    for line in lines[1:] if size > READ else lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def ended(path, cwd):
    """Return the runs of Claude Code in *cwd* that ended and were not fetched, by their ids."""
    runs, fetched = {}, set()
    for entry in entries(path):
        event, run_id = entry.get("event"), entry.get("run_id")
        if event == "fetched":
            fetched.update(entry.get("run_ids") or ())
        elif event == "started" and str(entry.get("caller")).startswith("claude-code"):
            runs[run_id] = {"cwd": entry.get("cwd"), "pid": entry.get("server_pid")}
        elif run_id in runs and event == "handed_back":
            runs[run_id]["left"] = True
        elif run_id in runs and event == "ended":
            runs[run_id]["status"] = entry.get("kind") or entry.get("status")
    found = {}
    for run_id, run in runs.items():
        status = run.get("status") or (None if is_alive(run["pid"]) else "interrupted")
        inside = os.path.join(str(run["cwd"]), "").startswith(os.path.join(cwd, ""))
        is_told = status not in (None, "cancelled") and run_id not in fetched
        if run.get("left") and is_told and inside:
            found[run_id] = status
    return found


def is_alive(pid):
    """Return True if the process *pid* exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, TypeError, OverflowError):
        pass
    return True


def untold(found, folder):
    """Return those of *found* that no earlier hook has named, and remember them."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    new = {}
    for run_id in list(found)[-MOST:]:
        name = os.path.join(folder, os.path.basename(run_id))
        try:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            continue
        new[run_id] = found[run_id]
    return new


def main():
    """Read the hook's input and print what Claude Code is to know."""
    asked = json.load(sys.stdin)
    event = asked.get("hook_event_name")
    if event == "Stop" and asked.get("stop_hook_active"):
        return
    state = state_folder()
    found = ended(os.path.join(state, "audit.jsonl"), os.path.realpath(str(asked.get("cwd"))))
    new = untold(found, os.path.join(state, "told")) if found else {}
    if not new:
        return
    runs = ", ".join(f"{run_id} ({status})" for run_id, status in new.items())
    ids = json.dumps(list(new))
    text = (
        f"Codex runs ended in the background: {runs}. codex_wait with run_ids {ids} returns them."
    )
    if event == "Stop":
        print(json.dumps({"decision": "block", "reason": text}))
    else:
        told = {"hookEventName": event, "additionalContext": text}
        print(json.dumps({"hookSpecificOutput": told}))


if __name__ == "__main__":
    try:
        main()
    except Exception:
        sys.exit(0)
