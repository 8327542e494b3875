"""The audit log: whole lines, private, rotated, shared, without secrets."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from codex_tools.runs import audit as module
from codex_tools.runs.audit import FILES_KEPT, AuditLog
from codex_tools.runs.writer import StateWriter


@contextmanager
def opened(folder: Path) -> Generator[AuditLog]:
    """Open the log of *folder*; on leaving, all is written."""
    writer = StateWriter()
    yield AuditLog(folder, writer)
    writer.close(60)


def entries(folder: Path) -> list[dict[str, object]]:
    files = sorted(folder.glob("audit*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_an_entry_is_a_line_that_only_this_user_may_read(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.write("started", {"cwd": "/a\nb", "n": 1})
        log.write("ended", {"status": "completed"})
    first, second = entries(tmp_path)
    assert (first["event"], first["cwd"], second["status"]) == ("started", "/a\nb", "completed")
    assert str(first["time"]).endswith("Z")
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600


def test_no_secret_gets_into_it(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.write("refused", {"message": "key sk-proj-abcdefghijklmnop", "a": 1})
    (entry,) = entries(tmp_path)
    assert entry["message"] == "key [secret]"


WRITER = """
import sys
from pathlib import Path
from codex_tools.runs import audit
from codex_tools.runs.writer import StateWriter
audit.FILE_LIMIT = 150_000
writer = StateWriter()
log = audit.AuditLog(Path(sys.argv[1]), writer)
for count in range(200):
    log.write("started", {"who": sys.argv[2], "count": count, "padding": "x" * 500})
writer.close(60)
"""


def test_several_servers_rotate_it_without_losing_a_line(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(n)]) for n in range(3)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    seen = {(entry["who"], entry["count"]) for entry in entries(tmp_path)}
    assert seen == {(str(who), count) for who in range(3) for count in range(200)}
    assert len([*tmp_path.glob("audit*.jsonl")]) > 1


def test_the_oldest_lines_go_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_LIMIT", 1000)
    with opened(tmp_path) as log:
        for count in range(200):
            log.write("started", {"count": count, "padding": "x" * 100})
    assert len([*tmp_path.glob("audit*.jsonl")]) == FILES_KEPT
    counts = sorted(int(str(entry["count"])) for entry in entries(tmp_path))
    assert counts == [*range(counts[0], 200)]
    assert 0 < counts[0] < 190


def test_a_log_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with caplog.at_level(logging.WARNING), opened(tmp_path) as log:
        log.write("started", {})
    assert "cannot write to" in caplog.text


def test_an_entry_keeps_its_data_and_controls_no_terminal(tmp_path: Path) -> None:
    path = "/a\x1b[2J\x9b2J\u202e\u2028\ud800größer"
    with opened(tmp_path) as log:
        log.write("started", {"cwd": path})
    text = (tmp_path / "audit.jsonl").read_text(encoding="utf-8")
    assert text.rstrip("\n").isprintable()
    (entry,) = entries(tmp_path)
    assert entry["cwd"] == path
