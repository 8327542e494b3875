"""Read the texts that can be searched: prompts, answers and the names of threads."""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import orjson

from codex_tools.codex.foreign_file import bounded_lines, open_foreign_file
from codex_tools.codex.json_object import Json, object_of
from codex_tools.history.tables import text_rows, transaction
from codex_tools.rollouts.files import PACKED, parts_of
from codex_tools.rollouts.line import COMPACTED, LINE_LIMIT, parse_line, user_text

NAME_LIMIT = 1024 * 1024
"""Bytes of the longest line with a thread's name that is read."""

TEXT_LIMIT = 20_000
"""Characters of a prompt or an answer that are searched, from its start."""

_HEAD = 160
"""Bytes of a line that contain the type of its event."""
_EVENT = b'"type":"event_msg","payload":{"type":"'
_READ = frozenset((b"task_s", b"task_c", b"user_m", b"agent_", b"item_c"))
"""The first six letters of the event types that matter here."""


def read_new_texts(
    db: sqlite3.Connection, home: Path, count: int, progress: Callable[[int, int], None]
) -> None:
    """Update the searchable texts of all threads, *count* files at a time.

    *progress* is called before each group of files, with the number of files done and of all
    files. It may raise an exception to stop.
    """
    rows = db.execute(
        "SELECT id, folder, name, own_offset, text_offset, size FROM file"
        " WHERE text_size < size AND problem IS NULL ORDER BY id DESC"
    ).fetchall()
    for at in range(0, len(rows), count):
        progress(at, len(rows))
        with transaction(db):
            for id_, folder, name, own_offset, text_offset, size in rows[at : at + count]:
                start = max(own_offset, text_offset)
                try:
                    texts, end = read_texts(home / folder / name, start, size)
                except OSError:
                    continue  # The file was just moved; the next refresh handles that.
                first, last = text_rows(id_)
                if texts:
                    db.execute(
                        "INSERT INTO text (rowid, words) SELECT ifnull(max(rowid) + 1, ?), ?"
                        " FROM text WHERE rowid BETWEEN ? AND ?",
                        (first, "\n".join(texts), first, last),
                    )
                db.execute(
                    "UPDATE file SET text_offset = ?, text_size = ? WHERE id = ?", (end, size, id_)
                )


def read_names(db: sqlite3.Connection, path: Path) -> None:
    """Read the names of threads from Codex's session_index.jsonl; the last name counts."""
    names: dict[str, str] = {}
    try:
        with open_foreign_file(path, follow=True) as file:
            for line in bounded_lines(file, NAME_LIMIT):
                try:
                    entry: Any = orjson.loads(line)
                    names[str(entry["id"])] = str(entry["thread_name"])
                except (orjson.JSONDecodeError, KeyError, TypeError):
                    continue  # A torn line or another format: skip this name.
    except OSError:
        names.clear()
    rows = [(id_, name, fold(name)) for id_, name in names.items()]
    db.execute("DELETE FROM name")
    db.executemany("INSERT INTO name VALUES (?, ?, ?)", rows)


def read_texts(path: Path, start: int, end: int) -> tuple[list[str], int]:
    """Return the prompts and answers of a part of a rollout, and the offset read up to.

    An incomplete last line is left for the next call.

    Raises:
        OSError: The file cannot be read.
    """
    texts: list[str] = []
    in_turn = False
    rest = b""
    long = 0
    at = start
    # The size of a compressed file is not the size of its content.
    is_packed = path.name.endswith(PACKED)
    for part in parts_of(path, start, 2**62 if is_packed else end):
        if long and b"\n" not in part:
            long += len(part)
            continue
        *lines, rest = (rest + part).split(b"\n")
        at += sum(map(len, lines)) + len(lines)
        if long:  # The end of a line that was left out.
            at += long
            del lines[0]
            long = 0
        if len(rest) > LINE_LIMIT:
            long, rest = len(rest), b""
        for line in lines:
            in_turn = _take_text(line, in_turn, texts)
    if rest.endswith(b"}") and parse_line(rest) is not None:
        _take_text(rest, in_turn, texts)
        at += len(rest)
    return texts, at


def _take_text(line: bytes, in_turn: bool, texts: list[str]) -> bool:
    """Add the prompt or answer of a line to *texts*; return True if a turn is open after it."""
    start = line.find(_EVENT, 0, _HEAD)
    # Behind a second brace, it would be a part of the record, such as the arguments of a tool.
    if start < 0 or line.count(b"{", 0, start) != 1:
        return in_turn
    at = start + len(_EVENT)
    if (what := line[at : at + 6]) not in _READ:
        return in_turn
    text: object = None
    if what == b"task_s":
        return True
    if what == b"task_c":
        in_turn = False
        text = _payload(line).get("last_agent_message")
    elif what == b"user_m" or (what == b"agent_" and not in_turn):
        text = _payload(line).get("message")
    elif what == b"item_c" and b'"item":{"type":"UserMessage"' in line[at : at + 240]:
        item = object_of(_payload(line), "item")
        text = user_text(item) if item.get("type") == "UserMessage" else None
    if isinstance(text, str) and text and text != COMPACTED:
        texts.append(text[:TEXT_LIMIT])
    return in_turn


def fold(text: str) -> str:
    """Return *text* without case and accents, as the text index compares it."""
    plain = unicodedata.normalize("NFKD", text)
    return "".join(each for each in plain if not unicodedata.combining(each)).casefold()


def _payload(line: bytes) -> Json:
    try:
        entry: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return object_of(cast(Json, entry), "payload") if isinstance(entry, dict) else {}
