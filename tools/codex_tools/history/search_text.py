"""Read the texts that can be searched: prompts, answers and the names of threads."""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import orjson

from codex_tools.codex.foreign_file import bounded_lines, open_foreign_file
from codex_tools.codex.json_object import Json, object_of, text_of
from codex_tools.history.tables import text_rows, transaction
from codex_tools.rollouts.files import PACKED, parts_of
from codex_tools.rollouts.line import COMPACTED, LineSplitter, parse_line, user_text
from codex_tools.rollouts.turn_builder import review_text
from codex_tools.rollouts.user_request import request_in

NAME_LIMIT = 1024 * 1024
"""Bytes of the longest line with a thread's name that is read."""

TEXT_LIMIT = 20_000
"""Characters of a prompt or an answer that are searched, from its start."""

STEP_BYTES = 64 * 1024 * 1024
"""Bytes read, at most about, between two commits: another process waits for commits."""

STEP_TEXT = 1024 * 1024
"""Characters of a row of the text index, at most about; a large rollout has several rows."""

_HEAD = 160
"""Bytes of a line that contain the type of its event."""
_BARE = b'{"type":"message","role":"'
"""The first bytes of a prompt or an answer in a rollout of a Codex before September 2025."""
_EVENT = b'"type":"event_msg","payload":{"type":"'
_READ = frozenset((b"task_s", b"task_c", b"user_m", b"agent_", b"item_c", b"exited"))
"""The first six letters of the event types that matter here."""
_ITEMS = (
    b'"item":{"type":"UserMessage"',
    b'"item":{"type":"Plan"',
    b'"item":{"type":"ExitedReviewMode"',
)


def read_new_texts(
    db: sqlite3.Connection, home: Path, count: int, progress: Callable[[int, int], None]
) -> None:
    """Update the searchable texts of all threads, and commit after *count* files or STEP_BYTES.

    *progress* is called before each transaction, with the number of files done and of all files.
    It may raise an exception to stop.
    """
    rows = db.execute(
        "SELECT id, folder, name, own_offset, text_offset, size FROM file"
        " WHERE text_size < size AND problem IS NULL ORDER BY id DESC"
    ).fetchall()
    steps = _steps(home, rows)
    done = 0
    while done < len(rows):
        progress(done, len(rows))
        with transaction(db):
            until, left = done + count, STEP_BYTES
            for done, id_, texts, offset, size, read in steps:
                first, last = text_rows(id_)
                if texts:
                    db.execute(
                        "INSERT INTO text (rowid, words) SELECT ifnull(max(rowid) + 1, ?), ?"
                        " FROM text WHERE rowid BETWEEN ? AND ?",
                        (first, "\n".join(texts), first, last),
                    )
                db.execute(
                    "UPDATE file SET text_offset = ?, text_size = max(text_size, ?) WHERE id = ?",
                    (offset, size, id_),
                )
                left -= read
                if done >= until or left <= 0:
                    break
            else:
                done = len(rows)


def _steps(
    home: Path, rows: list[tuple[int, str, str, int, int, int]]
) -> Iterator[tuple[int, int, list[str], int, int, int]]:
    """Yield files read, file, texts, offset, size once the file is read, and bytes of each step."""
    for number, (id_, folder, name, own_offset, text_offset, size) in enumerate(rows):
        at = max(own_offset, text_offset)
        try:
            for texts, offset in read_texts(home / folder / name, at, size):
                yield number, id_, texts, offset, 0, offset - at
                at = offset
        except OSError:
            continue  # The file was just moved; the next refresh handles that.
        yield number + 1, id_, [], at, size, 0


def read_names(db: sqlite3.Connection, path: Path) -> None:
    """Read the names of threads from Codex's session_index.jsonl; the last name counts."""
    names: dict[str, str] = {}
    try:
        with open_foreign_file(path, follow=True) as file:
            for line in bounded_lines(file, NAME_LIMIT):
                try:
                    entry: Any = orjson.loads(line)
                    names[str(entry["id"])] = str(entry["thread_name"] or "").strip()
                except (orjson.JSONDecodeError, KeyError, TypeError):
                    continue  # A torn line or another format: skip this name.
    except OSError:
        names.clear()
    # An empty name takes away the former one.
    rows = [(id_, name, fold(name)) for id_, name in names.items() if name]
    db.execute("DELETE FROM name")
    db.executemany("INSERT INTO name VALUES (?, ?, ?)", rows)


def read_texts(path: Path, start: int, end: int) -> Iterator[tuple[list[str], int]]:
    """Yield the prompts and answers of a part of a rollout, and the offset read up to.

    A large rollout is yielded in several steps, so that its texts are never all in memory. An
    incomplete last line is left for the next call.

    Raises:
        OSError: The file cannot be read.
    """
    splitter = LineSplitter()
    texts: list[str] = []
    in_turn = False
    at, told, length = start, start, 0
    # The size of a compressed file is not the size of its content.
    is_packed = path.name.endswith(PACKED)
    for block in parts_of(path, start, 2**62 if is_packed else end):
        at += len(block)
        for line in splitter.feed(block):
            before = len(texts)
            in_turn = _take_text(line, in_turn, texts)
            if len(texts) > before:
                length += len(texts[-1])
        if length > STEP_TEXT or at - told > STEP_BYTES:
            told = at - splitter.size
            yield texts, told
            texts, length = [], 0
    at -= (size := splitter.size)
    *_, line = b"", *splitter.rest()
    if line.endswith(b"}") and parse_line(line) is not None:
        _take_text(line, in_turn, texts)
        at += size
    yield texts, at


def _take_text(line: bytes, in_turn: bool, texts: list[str]) -> bool:
    """Add the prompt or answer of a line to *texts*; return True if a turn is open after it."""
    if line.startswith(_BARE):
        text = user_text(parse_line(line) or {})
        text = request_in(text) if line.startswith(b"user", len(_BARE)) else text
        if text:
            texts.append(text[:TEXT_LIMIT])
        return in_turn
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
    elif what == b"user_m":
        text = request_in(text_of(_payload(line), "message"))
    elif what == b"agent_" and not in_turn:
        text = _payload(line).get("message")
    elif what == b"exited":
        text = review_text(_payload(line))
    elif what == b"item_c" and any(item in line[at : at + 240] for item in _ITEMS):
        text = _text_of_item(object_of(_payload(line), "item"))
    if isinstance(text, str) and text and text != COMPACTED:
        texts.append(text[:TEXT_LIMIT])
    return in_turn


def _text_of_item(item: Json) -> str | None:
    match item.get("type"):
        case "UserMessage":
            return request_in(user_text(item))
        case "Plan":
            return text_of(item, "text")
        case "ExitedReviewMode":
            return review_text(item)
        case _:
            return None


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
