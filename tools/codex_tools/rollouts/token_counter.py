"""Whose thread it is, and what it used: request by request, nothing twice.

* `token_usage_record` (0.163 and later) is one model response. It counts where
  it names this thread, once for each response id.
* `token_count` counts by `last_token_usage` where `total_token_usage` differs
  from the one before in this file, and no record told of it already. Totals
  themselves are never counted: 0.60.1 begins at 0 with each resume, a fork
  inherits its parent's, and both re-emit what has not changed.
* A legacy fork begins with a copy of its parent, stamped anew. Its own part
  starts at the first turn whose id (UUID version 7) is not older than the
  thread's; where no turn has an id, after what is equal to the parent's.

Seen on 0.60.1 to 0.169.0. Not in any rollout: ephemeral runs, failed and aborted
responses, and the request by which the TUI of 0.169 names a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from codex_tools.rollouts.line import (
    LAST_HEAD,
    RECORD_HEAD,
    Counts,
    Json,
    counts_in,
    inner,
    loads,
    ms_at,
    ms_of,
    text_of,
)

REQUEST_FIELDS = 7
"""A request in `requests`: time (ms), context, input, cached, cache-write, output, reasoning."""

_BURST_MS = 1000


class Contexts(Protocol):
    """ContextNumbers for what requests were made with: a model in a folder."""

    def number(self, model: str | None, cwd: str | None) -> int:
        """Return the number of a model in a folder."""
        ...


@dataclass(slots=True, eq=False)
class TokenCounter:
    """Whose thread it is, and its requests in the order of its rollout."""

    thread_id: str
    _contexts: Contexts
    known: bool = False
    """Whether the file says whose it is."""
    created_ms: int | None = None
    source: str | None = None
    is_subagent: bool = False
    parent_id: str | None = None
    forked_id: str | None = None
    cli_version: str | None = None
    git_branch: str | None = None
    is_paginated: bool = False
    model: str | None = None
    cwd: str | None = None
    requests: list[int] = field(default_factory=lambda: [])
    """What was used, REQUEST_FIELDS numbers each, since the last `restore`."""
    responses: set[bytes] = field(default_factory=lambda: set())
    """The ids of responses that are counted."""
    bad_lines: int = 0
    limits: str | None = None
    """The newest rate limits that were filled in, as they were written: JSON, most likely."""
    limits_ms: int | None = None
    counts: list[tuple[Counts, Counts]] | None = None
    """All readings of `token_count`, if `keep_counts` was called."""
    _pending: list[tuple[Counts, Counts, tuple[int, ...] | None]] = field(
        default_factory=lambda: []
    )
    _context: int | None = None
    """The number of *model* in *cwd*, once it is known."""
    _replay: bool = False
    """Whether the file begins with a copy of another thread."""
    _own: bool = False
    """Whether that copy is over."""
    _plain: bool = True
    """Whether counts can be taken at once, being the thread's own."""
    _total: bytes = b""
    """The last total_token_usage as it was written."""
    _recorded: Counts | None = None
    """The usage of a record whose token_count is still to come."""
    _count_lines: list[bytes] = field(default_factory=lambda: [])
    """Lines that may have the newest rate limits, looked into at the end."""
    _record_head: bytes = b""
    """How a record of this thread begins."""
    _doubtful: bool = False
    """Whether it may not come: the totals began anew."""

    def __post_init__(self) -> None:
        self._record_head = RECORD_HEAD % self.thread_id.encode()

    @property
    def is_settled(self) -> bool:
        """Whether reading may go on later from `offset`."""
        return self._own or not self._replay

    def keep_counts(self) -> None:
        """Keep all readings of `token_count`, for a fork to be compared with."""
        self.counts = []
        self._plain = False

    def _number(self) -> int:
        """Return the number of what requests are made with now."""
        if self._context is None:
            self._context = self._contexts.number(self.model, self.cwd)
        return self._context

    def _take_meta(self, payload: Json) -> None:
        id_ = text_of(payload, "id")
        if id_ is None:
            self.bad_lines += 1
            return
        if self.known:
            # The parent's, at the head of its copied history.
            self._replay = self._replay or id_ != self.thread_id
            self._plain = self.is_settled and self.counts is None
            return
        get = payload.get
        self.known = True
        if id_ != self.thread_id:
            self.thread_id = id_
            self._record_head = RECORD_HEAD % id_.encode()
        self.created_ms = ms_of(get("timestamp"))
        self.cwd = text_of(payload, "cwd")
        self.parent_id = text_of(payload, "parent_thread_id")
        source: str | Json | None = get("source")
        if isinstance(source, str):
            self.source = source
        elif isinstance(source, dict) and source:
            self.source = next(iter(source))
            spawn = inner(inner(source, "subagent"), "thread_spawn")
            self.parent_id = self.parent_id or text_of(spawn, "parent_thread_id")
        self.is_subagent = self.source == "subagent" or get("thread_source") == "subagent"
        self.forked_id = text_of(payload, "forked_from_id")
        self.cli_version = text_of(payload, "cli_version")
        self.git_branch = text_of(inner(payload, "git"), "branch")
        self.is_paginated = get("history_mode") == "paginated"
        self._replay = self.forked_id is not None and not get("history_base")
        self._plain = not self._replay and self.counts is None

    def _payload_of(self, entry: Json | None) -> Json | None:
        """Return the payload of a line; count the line as bad if it has none."""
        payload: Json | None = entry.get("payload") if entry is not None else None
        if isinstance(payload, dict):
            return payload
        self.bad_lines += 1
        return None

    def _take_count(self, line: bytes, total: bytes, after: int) -> bool:
        """Take a token_count with a new total by its slices; *after* is where the total ends.

        Returns whether it has the shape that is expected.
        """
        last = None
        if line.startswith(LAST_HEAD, after):
            last = counts_in(line[after + len(LAST_HEAD) : line.find(b"}", after) + 1])
        ms = ms_at(line)
        if last is None or not ms:
            return False
        self._count(total, last, ms)
        return True

    def _take_record(self, line: bytes, at: int) -> bool:
        """Take a token_usage_record by its slices; return whether that was possible."""
        start = line.find(b'"response_id":"', at + 60) + 15
        end = line.find(b'"', start)
        response = line[start:end]
        if (
            start < 15
            or not line.startswith(self._record_head, at)
            or not line.startswith(b'","usage":', end)
            or response.find(b"\\") >= 0
        ):
            return False
        usage = counts_in(line[end + 10 : line.find(b"}", end) + 1])
        ms = ms_at(line)
        if usage is None or not ms:
            return False
        self._record(usage, response, ms)
        return True

    def _take_odd_count(self, payload: Json, ms: int) -> None:
        if isinstance(inner(payload, "rate_limits").get("primary"), dict):
            self.limits, self.limits_ms = orjson.dumps(payload["rate_limits"]).decode(), ms
            self._count_lines.clear()
        info: object = payload.get("info")
        if info is None:
            self._forget_total()
            return
        total = inner(payload, "info").get("total_token_usage")
        last = counts_in(orjson.dumps(inner(payload, "info").get("last_token_usage")))
        if last is None or not isinstance(total, dict):
            self.bad_lines += 1
            return
        self._count(orjson.dumps(total), last, ms)

    def _keep_limits(self, line: bytes) -> None:
        """Keep the limits of *line*, unread: only a report looks into the newest of all."""
        start = line.find(b'"rate_limits":') + 14
        text = line[start:-3]  # As Codex writes it, they end the line.
        if start < 14 or not line.endswith(b"}}}\n"):
            text = orjson.dumps(inner(inner(loads(line) or {}, "payload"), "rate_limits"))
        self.limits, self.limits_ms = text.decode("utf-8", "replace"), ms_at(line)

    def _record(self, usage: Counts, response: bytes, ms: int) -> None:
        """Count a response of this thread, once for each id; *response* is that, or nothing."""
        self._recorded, self._doubtful = usage, False
        if response:
            if response in self.responses:
                return
            self.responses.add(response)
        self.requests.extend((ms, self._number(), *usage))

    def _forget_total(self) -> None:
        self._total, self._doubtful = b"", True

    def _count(self, total: bytes, last: Counts, ms: int) -> None:
        changed = total != self._total and not self._is_same(total)
        self._total = total
        request: tuple[int, ...] | None = None
        if changed and not self._was_recorded(last) and (last[0] or last[3]):
            request = (ms, self._number(), *last)
        if self._plain:
            if request is not None:
                self.requests.extend(request)
            return
        reading = counts_in(total) or (0, 0, 0, 0, 0)
        if self.counts is not None:
            self.counts.append((reading, last))
        if not self.is_settled:
            self._pending.append((reading, last, request))
        elif request is not None:
            self.requests.extend(request)

    def _is_same(self, total: bytes) -> bool:
        """Return whether *total* is the last one, written by another version."""
        # Not with equal fields, then: a name alone is longer than that.
        if not self._total or -10 < len(total) - len(self._total) < 10:
            return False
        former = counts_in(self._total)
        return former is not None and former == counts_in(total)

    def _was_recorded(self, last: Counts) -> bool:
        """Return whether a record has told of this reading already; each tells of one."""
        if self._recorded is None:
            return False
        told = not self._doubtful or self._recorded == last
        self._recorded, self._doubtful = None, False
        return told

    def _settle(self, parent: Sequence[tuple[Counts, Counts]] | None) -> None:
        """Count what is pending, less what was copied."""
        pending = self._pending
        if parent is not None:
            copied = 0
            for (total, last, _), theirs in zip(pending, parent, strict=False):
                if (total, last) != theirs:
                    break
                copied += 1
            own = pending[copied:]
        else:
            first = next((r[0] for *_, r in pending if r is not None), 0)
            own = [p for p in pending if p[2] is not None and p[2][0] - first >= _BURST_MS]
        for *_, request in own:
            if request is not None:
                self.requests.extend(request)


def each_request(requests: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """Yield the requests of `ThreadReader.requests` one by one."""
    return zip(*[iter(requests)] * REQUEST_FIELDS, strict=True)
