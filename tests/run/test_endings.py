"""Which end was the cause, with reasons worded as by torch 2.13, gloo, NCCL and others."""

import signal

import pytest

from dpwatch.run.state.apply import apply
from dpwatch.run.state.endings import (
    ABORTED,
    FINISHED,
    GAVE_UP,
    KILLED,
    OWN,
    QUIT,
    STOPPED,
    ending,
    ends,
)
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import INTERRUPTED, Bye
from tests.frames import START_NS, batch, hello

PAIR = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553]"
GIVEN_UP = [
    f"RuntimeError: {PAIR} Connection closed by peer [127.0.0.1]:5540. This is typically caused by "
    "a remote worker crashing.",
    f"RuntimeError: {PAIR} Timed out waiting 25000ms for recv operation to complete",
    "RuntimeError: [..] Application timeout caused pair closure",
    "RuntimeError: Rank 0 successfully reached monitoredBarrier, but received errors while waiting "
    "for send/recv from rank 1.",
    "DistStoreError: wait timeout after 30000ms, keys: /default_pg/0//cpu//0/2",
    "DistNetworkError: The client socket has timed out after 30000ms while trying to connect to "
    "(10.0.0.1, 29500).",
    "DistBackendError: [1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] "
    "via c10d key-value store by key '0', but store->get('0') got error: Connection reset by peer",
    "RuntimeError: NCCL communicator was aborted on rank 3.",
    "RuntimeError: [Rank 2] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=80, "
    "OpType=ALLREDUCE) ran for 600013 milliseconds before timing out.",
]
OWN_ERRORS = [
    "ValueError: a bad sample",
    "RuntimeError: DataLoader worker (pid 4242) is killed by signal: Killed.",
    "RuntimeError: DataLoader timed out after 30 seconds",
    "ConnectionResetError: [Errno 104] Connection reset by peer",
    "ReadTimeoutError: HTTPSConnectionPool(host='hub', port=443): Read timed out.",
    "TimeoutError: no batch for 60 s",
    "DistNetworkError: The server socket has failed to listen on any local network address. port: "
    "29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
    "DistBackendError: NCCL error in: init.cpp:93, invalid usage (run with NCCL_DEBUG=WARN), "
    "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000",
    "OutOfMemoryError: CUDA out of memory.",
]


def ended(*byes, apart_ns=10**9):
    """Ranks that ended like that, at these intervals."""
    state = RunState("run")
    for r in range(len(byes)):
        apply(state, batch(hello(len(byes)), rank=r))
    for r, bye in enumerate(byes):
        apply(state, batch(bye, rank=r, now_ns=START_NS + r * apart_ns))
    return state.ranks


@pytest.mark.parametrize("reason", GIVEN_UP)
def test_a_rank_whose_collective_failed_gave_up(reason):
    assert ending(ended(Bye("failed", reason))[0]) == GAVE_UP


@pytest.mark.parametrize("reason", OWN_ERRORS)
def test_a_ranks_own_error_is_classified_as_its_own(reason):
    assert ending(ended(Bye("failed", reason))[0]) == OWN


@pytest.mark.parametrize(
    ("bye", "how"),
    [
        (Bye("lost", "process 1 was killed by SIGKILL", -signal.SIGKILL), KILLED),
        (Bye("lost", "process 1 exited without reporting"), KILLED),
        (Bye("lost", "process 1 ended with exit code 3", 3), QUIT),
        (Bye("failed", "exit code 3: process 1 exited without reporting", 3), QUIT),
        (Bye("failed", "exit code 1", 1), QUIT),
        (Bye("failed", "exit code 1: ValueError: bad", 1), OWN),
        (Bye("failed", f"exit code 1: {GIVEN_UP[0]}", 1), GAVE_UP),
        (Bye("failed", "killed by SIGABRT after its goodbye", -signal.SIGABRT), ABORTED),
        (Bye("failed", "killed by SIGKILL after its goodbye", -signal.SIGKILL), KILLED),
        (Bye("lost", "process 1 was killed by SIGABRT", -signal.SIGABRT), ABORTED),
        (Bye("lost", "process 1 was killed by SIGTERM", -signal.SIGTERM), STOPPED),
        (Bye("failed", INTERRUPTED), STOPPED),
        (Bye("finished"), FINISHED),
    ],
)
def test_other_ends(bye, how):
    assert ending(ended(bye)[0]) == how


def test_a_running_rank_has_no_ending():
    state = RunState("run")
    apply(state, batch(hello()))
    assert ending(state.ranks[0]) is None


def order(*byes, **when):
    return [(rank.rank, end) for rank, end in ends(ended(*byes, **when).values())]


def test_ranks_that_ended_by_themselves_come_first():
    gave_up, stopped = Bye("failed", GIVEN_UP[0]), Bye("lost", "was killed by SIGTERM", -15)
    assert order(gave_up, stopped, gave_up) == [(0, GAVE_UP), (2, GAVE_UP), (1, STOPPED)]
    own = Bye("failed", "ValueError: bad")
    assert order(gave_up, own, Bye("finished")) == [(1, OWN), (0, GAVE_UP)]


def test_a_rank_that_vanishes_after_another_gave_up_was_stopped():
    """A launcher often reaps a process before its exit can be read."""
    gone = Bye("lost", "process 1 exited without reporting")
    gave_up = Bye("failed", GIVEN_UP[0])
    assert order(gone, gave_up) == [(0, KILLED), (1, GAVE_UP)]
    assert order(gave_up, gone) == [(0, GAVE_UP), (1, STOPPED)]
    assert order(gave_up, gone, apart_ns=10**8) == [(1, KILLED), (0, GAVE_UP)]
