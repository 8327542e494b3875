"""Join the rollouts of one thread: its segments, and copies of them.

Codex 0.163.0 to 0.171.0 begin a segment, a rollout of its own, when a person takes turns back by
editing an earlier message, or by `thread/revert`. The segment names the one that it goes on from
and the offset up to which that one still counts, or none if all turns were taken back. The tokens
of turns that were taken back stay used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from codex_tools.codex.json_object import Json
from codex_tools.rollouts.files import ARCHIVE, ids_of
from codex_tools.rollouts.token_counter import united
from codex_tools.rollouts.turn_tracker import Mark


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout that was read."""

    number: int
    """Its number in the index."""
    folder: str
    """Its folder, relative to CODEX_HOME."""
    name: str
    mtime_ns: int
    facts: Json
    """The FACTS of its reader, by name."""
    marks: Sequence[Mark]
    requests: Sequence[int]

    @property
    def segment(self) -> str:
        """The id of its segment."""
        return ids_of(self.name)[1]

    @property
    def is_archived(self) -> bool:
        """True if it is in the archive."""
        return self.folder.startswith(ARCHIVE)

    def until(self, offset: int) -> Rollout:
        """Return this rollout as it was at *offset*, with all of its requests."""
        kept = [mark for mark in self.marks if mark.offset < offset]
        if len(kept) == len(self.marks):
            return replace(self, facts=self.facts | {"offset": min(offset, self.facts["offset"])})
        cut = self.marks[len(kept)]
        if kept:
            last = kept[-1]
            kept[-1] = replace(
                last, end=last.end or cut.offset, requests_end=last.requests_end or cut.requests
            )
        facts = self.facts | {"offset": offset, "turns": len(kept), "ending": cut.former}
        return replace(self, marks=kept, facts=facts if kept else facts | {"title": None})


@dataclass(frozen=True, slots=True)
class JoinedThread:
    """A thread, made of all its rollouts."""

    history: Sequence[Rollout]
    """The segments that hold the thread's turns, the oldest first, each up to where it counts."""
    requests: Sequence[int]
    """All requests, each once, also those of turns that were taken back."""
    facts: Json
    """The FACTS of a reader that describe the whole thread, by name."""
    copies: int
    """Number of rollouts that add no request to those of another copy of their segment."""

    @property
    def newest(self) -> Rollout:
        """The newest segment, to which Codex appends the next turn."""
        return self.history[-1]


def join(rollouts: Sequence[Rollout]) -> JoinedThread:
    """Return the thread that *rollouts*, at least one, are the files of."""
    ranked = sorted(rollouts, key=_rank)
    chosen: dict[str, Rollout] = {}
    for rollout in ranked:
        chosen.setdefault(rollout.segment, rollout)
    segments = [chosen[segment] for segment in sorted(chosen)]
    requests = united(segment.requests for segment in segments)
    copies = 0
    for rollout in ranked:
        if rollout is not chosen[rollout.segment]:
            more = united((requests, rollout.requests))
            copies += len(more) == len(requests)
            requests = more
    history = _history_of(chosen, segments[-1])
    return JoinedThread(history, requests, _facts_of(segments, history), copies)


def _rank(rollout: Rollout) -> tuple[int, int, bool, int, int]:
    """Return the order in which copies of a segment represent it: the most complete one first."""
    active_ms = rollout.facts["active_ms"] or 0
    requests = len(rollout.requests)
    return -requests, -active_ms, rollout.is_archived, len(rollout.name), rollout.number


def _history_of(chosen: dict[str, Rollout], newest: Rollout) -> list[Rollout]:
    left = dict(chosen)
    del left[newest.segment]
    history = [newest]
    while (base := left.pop(history[-1].facts["base_id"] or "", None)) is not None:
        history.append(base.until(history[-1].facts["base_offset"]))
    history.reverse()
    return history


def _facts_of(segments: Sequence[Rollout], history: Sequence[Rollout]) -> Json:
    """Return the facts of the thread: its origin by the oldest segment, its state by the newest."""
    newest, oldest = history[-1], segments[0]
    facts = dict(newest.facts)
    for name in ("git_branch", "source", "is_subagent", "parent_id", "forked_id", "agent"):
        facts[name] = oldest.facts[name]
    with_turns = [rollout for rollout in history if rollout.marks]
    state = with_turns[-1] if with_turns else newest
    for name in ("model", "cwd", "ending"):
        facts[name] = state.facts[name]
    # Without turns in the history, a title from before they were taken back is better than none.
    titled = [*history, *reversed(segments)]
    titles = (rollout.facts["title"] for rollout in titled)
    facts["title"] = next((title for title in titles if title), None)
    facts["turns"] = sum(rollout.facts["turns"] for rollout in history)
    facts["is_damaged"] = any(rollout.facts["is_damaged"] for rollout in history)
    for name, choose in (("created_ms", min), ("active_ms", max)):
        known = [rollout.facts[name] for rollout in segments if rollout.facts[name]]
        facts[name] = choose(known, default=None)
    return facts
