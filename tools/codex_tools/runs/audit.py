"""Write the audit log: the caller, the request, the limits and the result of each run.

The file is STATE/audit.jsonl: one JSON object a line, mode 0600, rotated. Prompts and answers are
never in it; Codex's own rollouts contain them, under the thread's id.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from codex_tools.codex.clean_text import clean_json
from codex_tools.codex.file_lock import lock, open_lock
from codex_tools.codex.masking import mask_line
from codex_tools.runs.run import Run
from codex_tools.runs.store import now
from codex_tools.runs.writer import StateWriter

logger = logging.getLogger(__name__)

FILE_LIMIT = 4 * 1024 * 1024
"""Size in bytes at which the file is rotated."""

FILES_KEPT = 5
"""Maximum number of files; the newest has no number."""


class AuditLog:
    """The audit log in one state folder; several servers may write to the same files."""

    def __init__(self, state_dir: Path, writer: StateWriter) -> None:
        self._path = state_dir / "audit.jsonl"
        self._writer = writer
        self.listener: Callable[[str, bytes], None] | None = None
        """Called in the writer's thread with each event and its line."""

    def write(self, event: str, facts: Mapping[str, Any]) -> None:
        """Append a line in the writer's thread; if that fails, log a warning and continue."""
        entry = {"time": now(), "event": event, "server_pid": os.getpid(), **facts}
        try:
            text = orjson.dumps(entry, default=str).decode()
        except TypeError:  # A name that is not UTF-8.
            text = json.dumps(entry, default=str)
        line = clean_json(mask_line(text.encode())).encode() + b"\n"
        self._writer.put(partial(self._append, line))
        if self.listener is not None:
            self._writer.put(partial(self.listener, event, line))

    def _append(self, line: bytes) -> None:
        try:
            fd = self._open()
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
        except OSError as error:
            logger.warning("cannot write to %s: %s", self._path, error)

    def _open(self) -> int:
        """Open the newest file; rotate the files first if it is full.

        A line is appended in one write, which needs no lock. Only rotating does, so that two
        servers do not both rotate; while another server does, the line goes to the full file.
        """
        fd = self._open_newest()
        try:
            if os.fstat(fd).st_size >= FILE_LIMIT and self._rotate_once(fd):
                os.close(fd)
                fd = self._open_newest()
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open_newest(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW
        fd = os.open(self._path, flags | os.O_CLOEXEC, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", str(self._path))
        return fd

    def _rotate_once(self, full: int) -> bool:
        """Rotate the files if *full* is still the newest; return True if it no longer is."""
        fd = open_lock(self._path.with_name("audit.lock"))
        try:
            if not lock(fd):
                return False
            if os.path.samestat(os.fstat(full), self._path.stat()):
                self._rotate()
            return True
        except FileNotFoundError:
            return True  # An earlier build, which uses another lock, has just renamed it.
        finally:
            os.close(fd)

    def _rotate(self) -> None:
        for number in range(FILES_KEPT - 1, 0, -1):
            older = self._path.with_name(f"audit.{number}.jsonl")
            newer = self._path.with_name(f"audit.{number - 1}.jsonl") if number > 1 else self._path
            if newer.exists():
                newer.replace(older)


def facts_of(run: Run) -> dict[str, Any]:
    """Return the facts of the turn that was granted, for the log."""
    request = run.request
    return {
        "caller": run.caller,
        "run_id": run.run_id,
        "thread_id": request.thread_id,
        "cwd": str(request.cwd),
        "sandbox": request.sandbox,
        "isolation": request.isolation,
        "add_dirs": [str(folder) for folder in request.add_dirs],
        "images": len(request.images),
        "model": request.model,
        "profile": request.profile,
        "web_search": request.web_search,
        "config": [key for key, _ in request.config],
        "skip_git_repo_check": request.skip_git_repo_check,
        "ephemeral": request.ephemeral,
        "timeout_s": request.timeout_s,
        "limits": {limit.name: limit.most for limit in request.limits},
        "depth": request.depth,
        "approvals": request.approvals,
        "ask_caller": request.ask_caller,
        "prompt_characters": len(request.prompt),
        "codex": str(run.request.program.path),
        "codex_version": run.request.program.version_text,
        "warnings": list(run.warnings),
    }


def ending_of(run: Run) -> dict[str, Any]:
    """Return the facts of the run's result, for the log."""
    result = run.outcome
    if result is None:
        return {"run_id": run.run_id}
    return {
        "caller": run.caller,
        "run_id": run.run_id,
        "thread_id": result.thread_id,
        "status": result.status,
        "kind": result.error.kind if result.error is not None else None,
        **({"stopped_by": run.stopped_by} if run.stopped_by else {}),
        "sandbox": result.sandbox,
        "attempts": result.attempts,
        "duration_s": result.duration_s,
        "commands": result.command_count,
        "files_changed": len(result.files_changed),
        "cost_usd": result.cost_usd,
    }
