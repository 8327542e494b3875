"""When the server calls a run lost, its worker's lease is over, however slow the pipe was."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from codex_tools.places.lease import Lease, SentPings, now


def test_a_lease_without_pings_ends() -> None:
    lease = Lease(10.0, at=100.0)
    assert lease.left_s(at=109.0) == 1.0
    assert lease.left_s(at=110.0) == 0.0


def test_a_ping_renews_the_lease() -> None:
    lease = Lease(10.0, at=100.0)
    assert lease.renew(5.0, at=105.0)
    assert lease.left_s(at=106.0) == 9.0


def test_a_ping_after_the_end_does_not_bring_the_lease_back() -> None:
    lease = Lease(10.0, at=100.0)
    assert not lease.renew(10.0, at=110.0)
    assert lease.left_s(at=110.0) == 0.0


def test_pings_that_a_stopped_pipe_has_kept_renew_nothing() -> None:
    lease = Lease(10.0, at=100.0)
    lease.renew(0.0, at=100.0)
    lease.renew(2.0, at=102.0)
    # Sent at 4 and 6, but the pipe stood still until 109.
    assert lease.renew(4.0, at=109.0)
    assert lease.left_s(at=109.0) == 5.0
    assert lease.renew(6.0, at=109.0)
    assert lease.left_s(at=109.0) == 7.0


def test_a_ping_that_names_no_time_renews_nothing() -> None:
    lease = Lease(10.0, at=100.0)
    for sent in (math.nan, math.inf, -math.inf):
        assert not lease.renew(sent, at=101.0)
    assert lease.left_s(at=101.0) == 9.0


@given(
    st.floats(-1e6, 1e6),
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 30)), min_size=1, max_size=30),
    st.floats(0, 3),
)
def test_the_server_s_end_of_a_lease_is_never_before_the_worker_s(
    offset: float, pings: list[tuple[float, float]], least_delay_s: float
) -> None:
    # The first answer must have come, so at least one ping was not slower than the hello limit.
    length_s, sent, arrived = 10.0, 0.0, 0.0
    server = SentPings(length_s, at=0.0)
    lease = Lease(length_s, at=offset + least_delay_s)
    lease.renew(0.0, at=offset + least_delay_s)
    for pause_s, delay_s in pings:
        sent += pause_s
        arrived = max(arrived, sent + least_delay_s + delay_s)  # A pipe keeps the order.
        server.sent_at = sent
        lease.renew(sent, at=offset + arrived)
    dead_at = server.dead_at(margin_s=least_delay_s + 0.001)
    assert lease.left_s(at=offset + dead_at) < 0.01


def test_the_clock_runs() -> None:
    assert now() <= now()


def test_a_worker_that_was_not_heard_for_the_lease_is_silent() -> None:
    pings = SentPings(10.0, at=0.0)
    assert not pings.is_silent(at=10.0)
    assert pings.is_silent(at=10.1)
    pings.heard_at = 10.0
    assert not pings.is_silent(at=20.0)
