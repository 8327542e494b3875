"""Prepare a review: check its target, and write the prompt where Codex has no reviewer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from codex_tools.codex.errors import InvalidArguments
from codex_tools.codex.json_object import Json
from codex_tools.codex.workers import on_cpu, on_disk
from codex_tools.engines.engine import ReviewTarget, TurnRequest
from codex_tools.schemas.output_schema import Output
from codex_tools.worktree.git import find_git, run_git

Kind = Literal["uncommitted", "base", "commit", "custom"]

KINDS: tuple[Kind, ...] = ("uncommitted", "base", "commit", "custom")

REVIEWER = "exec review"
"""The ability of Codex that a review needs; see `Program.flags`."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./@+=#~^{}-]{0,199}")
"""A git revision without characters that a shell or a prompt could take for something else."""

_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./@+=#-]{0,199}")


def read_target(review: dict[str, Any]) -> ReviewTarget:
    """Return the argument *review* as a target.

    Raises:
        ValueError: It is none.
    """
    # A strict client sends every key it knows, null or "" where it means nothing.
    given = {kind: value for kind, value in review.items() if value not in (None, "", False)}
    if len(given) != 1 or (kind := next(iter(given))) not in KINDS:
        raise ValueError(
            'give exactly one of {"uncommitted": true}, {"base": "BRANCH"}, {"commit": "SHA"}'
            ' and {"custom": true}'
        )
    value = given[kind]
    if kind in ("uncommitted", "custom"):
        if value is not True:
            raise ValueError(f"{kind} must be true")
        return ReviewTarget(kind)
    pattern = _BRANCH if kind == "base" else _NAME
    if not isinstance(value, str) or not pattern.fullmatch(value) or ".." in value:
        raise ValueError(f"{kind} must be the name of a git {_NOUNS[kind]}")
    return ReviewTarget(cast(Kind, kind), value)


_NOUNS = {"base": "branch", "commit": "commit"}


async def check_target(target: ReviewTarget, cwd: Path) -> ReviewTarget:
    """Return *target* with the full id of its commit, after git has found what it names.

    Codex does not check it: it lets the model guess what a wrong name means. Outside a repository
    `--base` hangs for ever (both seen with 0.98.0 to 0.171.0).

    Raises:
        InvalidArguments: *cwd* is in no repository, or git does not find the branch or commit.
    """
    if target.kind == "custom":
        return target
    git = await on_disk(find_git, cwd)
    if git is None:
        raise InvalidArguments([f"review.{target.kind}: {cwd} is not in a git repository"])
    if target.kind == "uncommitted":
        return target
    revision = f"{target.name}^{{commit}}"
    args = ["rev-parse", "--verify", "--quiet", "--end-of-options", revision]
    lines = (await run_git(git, cwd, args) or b"").decode("ascii", "replace").split()
    if not lines:
        noun = _NOUNS[target.kind]
        raise InvalidArguments([f"review.{target.kind}: git knows no {noun} {target.name!r}"])
    return target if target.kind == "base" else replace(target, name=lines[-1])


_TASKS = {
    "uncommitted": (
        "Review the uncommitted changes: what `git diff HEAD` shows, and the untracked files that"
        " `git status --porcelain` lists."
    ),
    "base": (
        "Review the changes of this branch against {name}: what"
        ' `git diff "$(git merge-base HEAD {name})"` shows.'
    ),
    "commit": "Review the changes of commit {name}: what `git show {name}` shows.",
}

_RULES = (
    "Report only what could make the code wrong, unsafe or hard to maintain, and only what these"
    " changes brought in. Give each finding a short title, a body that says when the fault shows,"
    " the file with its absolute path, the first and the last line, a priority from 0 (must be"
    " mended at once) to 3 (minor), and your confidence from 0 to 1. Change no files."
)

_FINDINGS: Json = {
    "type": "object",
    "properties": {
        "summary": {"type": "string"},
        "findings": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "title": {"type": "string"},
                    "body": {"type": "string"},
                    "file": {"type": ["string", "null"]},
                    "lines": {"type": ["array", "null"], "items": {"type": "integer"}},
                    "priority": {"type": ["integer", "null"]},
                    "confidence": {"type": ["number", "null"]},
                },
                "required": ["title", "body", "file", "lines", "priority", "confidence"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["summary", "findings"],
    "additionalProperties": False,
}
"""The form of a review's answer, as `rollouts.review.review_in` returns it."""


async def own_review(
    request: TurnRequest, target: ReviewTarget
) -> tuple[TurnRequest, Output, tuple[str, ...]]:
    """Return a turn in which the model is asked for the review, for a Codex without a reviewer.

    Returns:
        The turn, the form of its answer, and a warning for the caller.
    """
    task = _TASKS.get(target.kind, "{prompt}").format(name=target.name, prompt=request.prompt)
    output = await on_cpu(Output.of, _FINDINGS, 1)
    version = request.program.version_text
    warning = (
        f"Codex {version} has no reviewer of its own (0.98.0 and later have one): a prompt of this"
        " server asked for the review."
    )
    return replace(request, prompt=f"{task}\n\n{_RULES}"), output, (warning,)
