"""Read the rollouts of a review by Codex's own reviewer.

`codex exec review` makes two threads: the one that it names, which records only what the reviewer
found, and one in which the reviewer works, with its settings and its usage. These shapes were seen
with 0.98.0, 0.147.0, 0.163.0 and 0.171.0.
"""

from __future__ import annotations

from pathlib import Path

from codex_tools.codex.json_object import Json, object_of, objects_of, text_of
from codex_tools.rollouts.files import (
    BLOCK,
    find_rollouts,
    meta_of,
    open_rollout,
    rollouts_since,
)
from codex_tools.rollouts.line import parse_line

FINDINGS_KEPT = 200

_LINE_LIMIT = 16 * 1024 * 1024
"""Maximum bytes of a line that is read; a review has a few thousand."""


def find_reviewer(home: Path, thread_id: str) -> Path | None:
    """Return the rollout of the thread in which the reviewer worked for the review *thread_id*.

    0.98.0 does not record which review a reviewer belongs to. There the only reviewer that began
    later in the same folder is taken, and none if there are several.
    """
    own = next(map(_first_meta, find_rollouts(home, thread_id)), None)
    unnamed: list[Path] = []
    for path in rollouts_since(home, thread_id):
        meta = _first_meta(path)
        if meta is None or object_of(meta, "source").get("subagent") != "review":
            continue
        parent = text_of(meta, "parent_thread_id")
        if parent == thread_id:
            return path
        if parent is None and own is not None and meta.get("cwd") == own.get("cwd"):
            unnamed.append(path)
    return unnamed[0] if len(unnamed) == 1 else None


def _first_meta(path: Path) -> Json | None:
    try:
        with open_rollout(path) as file:
            return meta_of(file.readline(BLOCK))
    except OSError:
        return None


def review_in(path: Path) -> Json | None:
    """Return what the review recorded in *path* found: `summary` and `findings`.

    None if the reviewer did not answer in Codex's form: then its text is all there is.

    Raises:
        OSError: The rollout cannot be read.
    """
    found: Json | None = None
    with open_rollout(path) as file:
        while line := file.readline(_LINE_LIMIT):
            if b"xited_review_mode" in line or b"ExitedReviewMode" in line:
                found = _output_in(line) or found
    if found is None:
        return None
    findings = objects_of(found, "findings")[:FINDINGS_KEPT]
    if not findings and not text_of(found, "overall_correctness"):
        return None
    return {
        "summary": text_of(found, "overall_explanation") or "",
        "findings": [_finding(each) for each in findings],
    }


def _output_in(line: bytes) -> Json | None:
    payload = object_of(parse_line(line) or {}, "payload")
    if text_of(payload, "type") == "item_completed":
        payload = object_of(payload, "item")
    if text_of(payload, "type") not in ("exited_review_mode", "ExitedReviewMode"):
        return None
    return object_of(payload, "review_output") or None


def _finding(finding: Json) -> Json:
    place = object_of(finding, "code_location")
    lines = object_of(place, "line_range")
    ends = [each for each in (lines.get("start"), lines.get("end")) if type(each) is int]
    return {
        "title": text_of(finding, "title") or "",
        "body": text_of(finding, "body") or "",
        "file": text_of(place, "absolute_file_path"),
        "lines": ends if len(ends) == 2 else None,
        "priority": _number(finding, "priority"),
        "confidence": _number(finding, "confidence_score"),
    }


def _number(data: Json, key: str) -> int | float | None:
    value = data.get(key)
    return value if type(value) in (int, float) else None
