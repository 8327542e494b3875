"""Count the tokens of one thread from its rollout: each request once.

* `token_usage_record` (Codex 0.163 and later) is one model response. It counts if it names
  this thread, once for each response id.
* `token_count` counts by its `last_token_usage` if its `total_token_usage` differs from the
  previous one in this file and no record has reported the same request. Totals themselves are
  never counted: 0.60.1 restarts them at 0 with each resume, a fork inherits its parent's, and
  both emit unchanged totals again.
* A legacy fork starts with a copy of its parent under new timestamps. The thread's own part
  starts at the first turn whose id (UUID version 7) is not older than the thread's id. If no
  turn has an id, the own part starts after the readings that equal the parent's.

Seen on 0.60.1 to 0.169.0. No rollout contains ephemeral runs, failed and aborted responses, and
the request by which the TUI of 0.169 names a thread.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from codex_tools.codex.json_object import Json, object_of, text_of
from codex_tools.codex.originator import CLIENT_NAME
from codex_tools.rollouts.line import (
    RECORD,
    Counts,
    counts_in,
    counts_of,
    ms_at,
    ms_of,
    parse_line,
)

REQUEST_FIELDS = 8
"""A request in `requests`: time (ms), context, input, cached, cache-write, output and reasoning
tokens, and the number of its response (0 if its id was not recorded)."""
RESPONSE_FIELD = 7
"""The place of the response's number in a request."""

_COPY_MS = 1000
"""Milliseconds in which Codex writes the copy of a parent: readings in them are the parent's."""

# The total and the last usage of a token_count are cut out of the line by their names. Parsing
# the whole line with orjson makes a cold index take 1.08 to 1.2 times the CPU time. That alone
# would be acceptable, but with 10,000 threads the index would then take longer than ccusage.
_TOTAL_HEAD = b'"type":"token_count","info":{"total_token_usage":{'
_TOTAL_PLACE = len(b'"type":"event_msg","payload":{')
_LIMITS = b'"primary":{'
"""In a token_count line whose rate limits have values."""
_BUCKET = b'"limit_id":"'
"""In the rate limits of a bucket; 0.60.1 writes no ids, 0.163.0 and 0.171.0 write "codex"."""
_ACCOUNT = b"codex"
"""The id of the account's own bucket; models such as gpt-5.3-codex-spark have another one."""
_ACCOUNT_ID = b'"limit_id":"codex"'
BUCKETS_KEPT = 16
"""Buckets other than the account's that are kept for each file, so that no file can fill memory."""
_LAST_HEAD = b',"last_token_usage":{'


Limits = tuple[int | None, str | None, str | None]
"""The `limits_ms`, `limits` and `other_limits` of a reader."""


class Contexts(Protocol):
    """Numbers for the contexts of requests: a context is a model in a folder and a service tier."""

    def number(self, model: str | None, cwd: str | None, tier: str | None) -> int:
        """Return the number of a model in a folder and a service tier."""
        ...


@dataclass(slots=True, eq=False)
class TokenCounter:
    """The facts of a thread's session_meta, and its requests in the order of the rollout."""

    thread_id: str
    _contexts: Contexts
    has_meta: bool = False
    """True once a session_meta line has named the thread."""
    created_ms: int | None = None
    source: str | None = None
    is_subagent: bool = False
    parent_id: str | None = None
    agent: str | None = None
    """The path of a sub-agent among the agents of its team, else its nickname."""
    forked_id: str | None = None
    cli_version: str | None = None
    git_branch: str | None = None
    is_paginated: bool = False
    base_id: str | None = None
    """The segment that this one goes on from, or the thread that this one was forked from."""
    base_offset: int = 0
    """Bytes of that segment that belong to this thread's history."""
    model: str | None = None
    cwd: str | None = None
    tier: str | None = None
    """The service tier of the current turn, as Codex recorded it."""
    requests: list[int] = field(default_factory=lambda: [])
    """The requests since the last `restore`, REQUEST_FIELDS numbers each."""
    responses: set[int] = field(default_factory=lambda: set())
    """The numbers of the responses counted so far."""
    bad_lines: int = 0
    limits: str | None = None
    """The account's newest rate limits with values, as JSON."""
    limits_ms: int | None = None
    other_limits: str | None = None
    """The newest rate limits of each other bucket, as JSON: `[[ms, limits], ...]`, newest last."""
    counts: list[tuple[Counts, Counts]] | None = None
    """All readings (total, last) of `token_count` lines, if `keep_counts` was called."""
    _pending: list[tuple[Counts, Counts, tuple[int, ...] | None]] = field(
        default_factory=lambda: []
    )
    """Readings of which only the end of the file shows whether they belong to the parent."""
    _context: int | None = None
    """The number of *model* in *cwd* and *tier*, once a request needed it."""
    _has_copy: bool = False
    """True if the file starts with a copy of another thread."""
    _copy_ended: bool = False
    _counts_directly: bool = True
    """True if a reading is the thread's own and no reading has to be kept."""
    _total: bytes = b""
    """The last total_token_usage, as JSON."""
    _record: Counts | None = None
    """The usage of the last token_usage_record whose token_count has not followed yet."""
    _is_record_unsure: bool = False
    """True if that token_count may be missing, because the totals have restarted."""
    _count_lines: list[bytes] = field(default_factory=lambda: [])
    """Lines of which the newest of each bucket is still to be found, or was found."""

    @property
    def in_own_part(self) -> bool:
        """True once the copy of another thread, if any, has been read."""
        return self._copy_ended or not self._has_copy

    @property
    def all_limits(self) -> Limits:
        """The newest rate limits, with the time of the account's."""
        return self.limits_ms, self.limits, self.other_limits

    def keep_counts(self) -> None:
        """Keep all readings of `token_count` lines, so that a fork can be compared with them."""
        self.counts = []
        self._counts_directly = False

    def leave_copy(self) -> None:
        """Count all that follows as the thread's own part."""
        self._copy_ended, self._counts_directly = True, self.counts is None
        self._pending.clear()

    def _context_number(self) -> int:
        """Return the number of the current model, folder and service tier."""
        if self._context is None:
            self._context = self._contexts.number(self.model, self.cwd, self.tier)
        return self._context

    def _take_meta(self, payload: Json) -> None:
        id_ = text_of(payload, "id")
        if id_ is None:
            self.bad_lines += 1
            return
        if self.has_meta:
            # A second one is the parent's, at the start of its copied history.
            self._has_copy = self._has_copy or id_ != self.thread_id
            self._counts_directly = self.in_own_part and self.counts is None
            return
        get = payload.get
        self.has_meta = True
        self.thread_id = id_
        self.created_ms = ms_of(get("timestamp"))
        self.cwd = text_of(payload, "cwd")
        self.parent_id = text_of(payload, "parent_thread_id")
        source: str | Json | None = get("source")
        if isinstance(source, str):
            is_ours = source == "vscode" and get("originator") == CLIENT_NAME
            self.source = CLIENT_NAME if is_ours else source
        elif isinstance(source, dict) and source:
            self.source = next(iter(source))
            spawn = object_of(object_of(source, "subagent"), "thread_spawn")
            self.parent_id = self.parent_id or text_of(spawn, "parent_thread_id")
            self.agent = text_of(spawn, "agent_path") or text_of(spawn, "agent_nickname")
        self.agent = (
            self.agent or text_of(payload, "agent_path") or text_of(payload, "agent_nickname")
        )
        self.is_subagent = self.source == "subagent" or get("thread_source") == "subagent"
        self.forked_id = text_of(payload, "forked_from_id")
        self.cli_version = text_of(payload, "cli_version")
        self.git_branch = text_of(object_of(payload, "git"), "branch")
        self.is_paginated = get("history_mode") == "paginated"
        base = object_of(payload, "history_base")
        self.base_id = text_of(base, "thread_id")
        offset: object = base.get("end_byte_offset")
        self.base_offset = offset if isinstance(offset, int) else 0
        self._has_copy = self.forked_id is not None and not base
        self._counts_directly = not self._has_copy and self.counts is None

    def _take_record(self, payload: Json, ms: int) -> None:
        """Take a token_usage_record; count it if it is this thread's and its response is new."""
        usage = counts_of(payload.get("usage"))
        if usage is None:
            self.bad_lines += 1
            return
        self._record, self._is_record_unsure = usage, False
        if payload.get("thread_id") != self.thread_id:
            return
        id_ = text_of(payload, "response_id")
        response = number_of(id_) if id_ else 0
        if response:
            if response in self.responses:
                return
            self.responses.add(response)
        self.requests.extend((ms, self._context_number(), *usage, response))

    def _take_count_text(self, line: bytes, start: int) -> bool:
        """Take a token_count without parsing the line; return False if it must be parsed.

        *start* is the offset of its type.
        """
        if self._counts_directly:
            self._count_lines.append(line)
        start += _TOTAL_PLACE
        if not line.startswith(_TOTAL_HEAD, start):
            return False
        start += len(_TOTAL_HEAD) - 1
        # Most repeat the last total, or follow the record of the same request.
        if self._counts_directly and self._total and line.startswith(self._total, start):
            return True
        end = line.find(b"}", start) + 1
        total = line[start:end]
        is_recorded = self._record is not None and not self._is_record_unsure
        if self._counts_directly and is_recorded and not self._is_same(total):
            self._total, self._record = total, None
            return True
        if not line.startswith(_LAST_HEAD, end):
            return False
        start = end + len(_LAST_HEAD) - 1
        last = counts_in(line[start : line.find(b"}", start) + 1])
        ms = ms_at(line)
        if last is None or not ms:
            return False
        self._count(total, last, ms)
        return True

    def _take_count(self, payload: Json, ms: int) -> None:
        """Take the payload of a token_count."""
        limits = object_of(payload, "rate_limits")
        if isinstance(limits.get("primary"), dict):
            self._keep_newest_limits()
            self._take_kept_limits()
            self._put_limits(limits, ms)
        if payload.get("info") is None:
            self._total, self._is_record_unsure = b"", True
            return
        info = object_of(payload, "info")
        total = info.get("total_token_usage")
        last = counts_of(info.get("last_token_usage"))
        if last is None or not isinstance(total, dict):
            self.bad_lines += 1
            return
        self._count(orjson.dumps(total), last, ms)

    def _keep_newest_limits(self) -> None:
        """Drop all lines but the newest one of each bucket whose rate limits have values."""
        lines = self._count_lines
        while lines and _LIMITS not in lines[-1]:
            lines.pop()
        if len(lines) < 2:
            return
        # Usually all lines are of the account, with or without an id. One search in each line costs
        # 1.5 % of a cold index.
        if _ACCOUNT_ID in lines[-1]:
            others = [line for line in lines if line.rfind(_ACCOUNT_ID) < 0]
        else:
            others = [line for line in lines if line.rfind(_BUCKET) >= 0]
        if not others:
            del lines[:-1]
            return
        kept: dict[bytes, bytes] = {}
        for line in reversed(lines):
            bucket = _bucket_of(line)
            if _LIMITS in line and (bucket == _ACCOUNT or len(kept) < BUCKETS_KEPT):
                kept.setdefault(bucket, line)
        self._count_lines = [*reversed(kept.values())]

    def _take_kept_limits(self) -> None:
        """Take the rate limits of the lines kept, and drop the lines."""
        for line in self._count_lines:
            # Codex ends the line with them. Parsing one line of each file costs 3 % of a cold
            # index.
            _, _, text = line.partition(b'"rate_limits":')
            is_whole = text.endswith(b"}}}\n") and RECORD not in text
            if is_whole and _bucket_of(line) == _ACCOUNT:
                self.limits, self.limits_ms = text[:-3].decode("utf-8", "replace"), ms_at(line)
            else:
                payload = object_of(parse_line(line) or {}, "payload")
                self._put_limits(object_of(payload, "rate_limits"), ms_at(line))
        self._count_lines.clear()

    def _put_limits(self, limits: Json, ms: int) -> None:
        """Make *limits* the newest ones of their bucket."""
        bucket = text_of(limits, "limit_id") or _ACCOUNT.decode()
        if bucket == _ACCOUNT.decode():
            self.limits, self.limits_ms = orjson.dumps(limits).decode(), ms
            return
        others: list[list[Any]] = orjson.loads(self.other_limits or "[]")
        others = [other for other in others if other[1]["limit_id"] != bucket]
        others.append([ms, limits])
        self.other_limits = orjson.dumps(others[-BUCKETS_KEPT:]).decode()

    def _count(self, total: bytes, last: Counts, ms: int) -> None:
        """Count one reading, keep it, or do both."""
        changed = total != self._total and not self._is_same(total)
        self._total = total
        request: tuple[int, ...] | None = None
        if changed and not self._follows_record(last) and (last[0] or last[3]):
            request = (ms, self._context_number(), *last, 0)
        if self._counts_directly:
            if request is not None:
                self.requests.extend(request)
            return
        reading = counts_in(total) or (0, 0, 0, 0, 0)
        if self.counts is not None:
            self.counts.append((reading, last))
        if not self.in_own_part:
            self._pending.append((reading, last, request))
        elif request is not None:
            self.requests.extend(request)

    def _is_same(self, total: bytes) -> bool:
        """Return True if *total* has the last total's counts, written by another Codex version."""
        # Another version writes other fields, and the name of one field alone has 10 bytes.
        if not self._total or -10 < len(total) - len(self._total) < 10:
            return False
        former = counts_in(self._total)
        return former is not None and former == counts_in(total)

    def _follows_record(self, last: Counts) -> bool:
        """Return True if the last record has counted this request; each record stands for one."""
        if self._record is None:
            return False
        is_counted = not self._is_record_unsure or self._record == last
        self._record, self._is_record_unsure = None, False
        return is_counted

    def _count_pending(self, parent: Sequence[tuple[Counts, Counts]] | None) -> None:
        """Count the pending readings, except those copied from *parent*."""
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
            own = [p for p in pending if p[2] is not None and p[2][0] - first >= _COPY_MS]
        for *_, request in own:
            if request is not None:
                self.requests.extend(request)


def _bucket_of(line: bytes) -> bytes:
    """Return the id of the bucket in a token_count line."""
    start = line.find(_BUCKET) + len(_BUCKET)
    return line[start : line.find(b'"', start)] if start >= len(_BUCKET) else _ACCOUNT


def number_of(response_id: str) -> int:
    """Return a number of 52 bits for the id of a response, the same in every process.

    Two checksums are enough to tell the responses of one thread apart, and cost a quarter of a
    hash.
    """
    data = response_id.encode()
    return (zlib.crc32(data) << 20 | zlib.adler32(data) & 0xFFFFF) or 1


def united(rollouts: Iterable[Iterable[int]]) -> list[int]:
    """Return the requests of all *rollouts* of one thread, each request once.

    Rollouts may be segments, copies, or the parts of a thread that was moved while Codex wrote it.
    A request is recognized by its response, or else by its time and its tokens.
    """
    requests: list[int] = []
    known: Counter[object] = Counter()
    for rollout in rollouts:
        own: Counter[object] = Counter()
        for request in each_request(rollout):
            key = request[RESPONSE_FIELD] or (request[0], *request[2:RESPONSE_FIELD])
            own[key] += 1
            if own[key] > known[key]:
                requests.extend(request)
        known |= own
    return requests


def each_request(requests: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """Yield the requests of `ThreadReader.requests` one by one."""
    return zip(*[iter(requests)] * REQUEST_FIELDS, strict=True)
