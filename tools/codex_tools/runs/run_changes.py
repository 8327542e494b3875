"""Define what a run changed in its project, as results hold it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from codex_tools.codex.masking import mask
from codex_tools.codex.record import Record
from codex_tools.codex.turn_result import ChangeKind
from codex_tools.worktree.tree_changes import Changes, acts_by_itself

DIFF_LIMIT = 10_000
"""Maximum characters of a diff in a result: about 3,000 tokens for the model that reads it."""

FILES_LIMIT = 200
"""Maximum number of files in a result."""

LEFT_OUT_LIMIT = 50
"""Maximum number of paths that a result names as left out."""


class FileDiff(Record):
    """A changed file; lines are null for a binary file, and where only its name is known."""

    path: str
    kind: Literal["add", "update", "delete"]
    insertions: int | None
    deletions: int | None
    warning: str | None = None
    """Why the file acts by itself, for example as a hook or an editor's task"""


class LeftOutPath(Record):
    """A path that was not copied or not compared line by line."""

    path: str
    reason: str


class RunChanges(Record):
    """What a run changed in its project; paths are relative to the project."""

    files: list[FileDiff]
    insertions: int | None
    deletions: int | None
    text: str | None
    """The diff, shortened; null where only names are known."""
    patch: str | None
    """The resource with the whole diff."""
    left_out: list[LeftOutPath]
    applied: bool
    """True if the changes are in the person's folder."""


def changes_in_place(
    files: Sequence[tuple[str, ChangeKind]],
    diff: Changes | None = None,
    run_id: str = "",
    problem: str = "",
) -> RunChanges:
    """Return the changes of a run that was not isolated.

    Args:
        files: The changed paths.
        diff: The changes of those whose lines could be compared; None if only names are known.
        run_id: The id of the run.
        problem: Why there is no *diff*.
    """
    lines = {} if diff is None else {shown(each.path): each for each in diff.files}
    named: list[FileDiff] = []
    for path, kind in files[:FILES_LIMIT]:
        each = lines.get(path)
        acts = acts_by_itself(path) if each is None else each.warning
        named.append(
            FileDiff(
                path=path,
                kind=kind,
                insertions=None if each is None else each.insertions,
                deletions=None if each is None else each.deletions,
                warning=acts if kind != "delete" else None,
            )
        )
    left_out: list[tuple[str, str]] = []
    if diff is not None:
        left_out = [(each.path, each.reason) for each in diff.left_out]
    elif files:
        left_out = [("...", f"only names are known: {problem}")]
    uri = patch_uri(run_id) if diff is not None and diff.patch is not None else None
    is_known = diff is not None or not files
    return RunChanges(
        files=named,
        insertions=sum(each.insertions or 0 for each in lines.values()) if is_known else None,
        deletions=sum(each.deletions or 0 for each in lines.values()) if is_known else None,
        text=_bounded(mask(diff.text), DIFF_LIMIT, uri) if diff is not None else None,
        patch=uri,
        left_out=_named(left_out),
        applied=True,
    )


def changes_of_copy(
    changes: Changes, left_out: Iterable[tuple[str, str]], run_id: str, *, applied: bool
) -> RunChanges:
    """Return the changes of an isolated run.

    Args:
        changes: What its copy changed.
        left_out: Paths that were not copied, each with the reason.
        run_id: The id of the run.
        applied: True if the changes are in the person's folder.
    """
    uri = patch_uri(run_id) if changes.patch is not None else None
    missing = {*left_out, *((each.path, each.reason) for each in changes.left_out)}
    return RunChanges(
        files=[
            FileDiff(
                path=shown(each.path),
                kind=each.kind,
                insertions=each.insertions,
                deletions=each.deletions,
                warning=each.warning,
            )
            for each in changes.files[:FILES_LIMIT]
        ],
        insertions=changes.insertions,
        deletions=changes.deletions,
        text=_bounded(mask(changes.text), DIFF_LIMIT, uri),
        patch=uri,
        left_out=_named(sorted(missing)),
        applied=applied,
    )


def _named(left_out: Sequence[tuple[str, str]]) -> list[LeftOutPath]:
    named = [LeftOutPath(path=shown(path), reason=reason) for path, reason in left_out]
    if len(named) <= LEFT_OUT_LIMIT:
        return named
    more = LeftOutPath(path="...", reason=f"{len(named) - LEFT_OUT_LIMIT:,} more paths")
    return [*named[:LEFT_OUT_LIMIT], more]


def shorten_changes(changes: RunChanges | None, limit: int) -> RunChanges | None:
    """Return *changes* with a diff of at most *limit* characters, and at most 50 files."""
    if changes is None:
        return None
    text = changes.text and _bounded(changes.text, limit, changes.patch)
    update = {"text": text, "files": changes.files[:50], "left_out": changes.left_out[:10]}
    return changes.model_copy(update=update)


def patch_uri(run_id: str) -> str:
    """Return the address of the whole diff of a run, as the server's resource."""
    return f"codex://runs/{run_id}/patch"


def shown(path: str) -> str:
    """Return a path of the file system as text; U+FFFD replaces bytes that are not UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _bounded(text: str, limit: int, uri: str | None) -> str:
    if len(text) <= limit:
        return text
    where = f": read {uri}" if uri is not None else ""
    return f"{text[:limit].rpartition(chr(10))[0]}\n[the diff is longer{where}]\n"
