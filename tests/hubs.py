"""A hub on a thread, ranks that send to it, and viewers that follow it."""

import os
import threading
import time
from contextlib import contextmanager

import zmq

from dpwatch.hub.server import Hub
from dpwatch.run.state.encoding import decode
from dpwatch.runtime import paths
from dpwatch.viewer.watcher import Watcher
from dpwatch.wire import codec, transport
from dpwatch.wire.viewer_messages import STATE_REQUEST

DEADLINE_S = 90


@contextmanager
def serving(run_id="run", **options):
    """A hub on its own thread, as its process would hold it: lock and all."""
    place = paths.run_dir(run_id)
    lock = place.try_lock()
    assert lock is not None
    hub = Hub(place, **options)
    thread = threading.Thread(target=hub.serve)
    thread.start()
    try:
        yield hub
    finally:
        hub.stop()
        thread.join(DEADLINE_S)
        hub.close()
        os.close(lock)


@contextmanager
def rank(place):
    context = zmq.Context()
    socket = transport.push_socket(context, place.ingest)
    try:
        yield lambda frame: socket.send(codec.encode(frame))
    finally:
        socket.close(linger=1000)
        context.term()


@contextmanager
def watching(**options):
    watcher = Watcher(**options)
    try:
        yield watcher
    finally:
        watcher.close()


def state_of(place):
    """All that a run's hub knows, asked for."""
    context = zmq.Context()
    socket = transport.ask_socket(context, place.ask)
    try:
        socket.send(STATE_REQUEST)
        assert socket.poll(DEADLINE_S * 1000), "no state"
        return decode(memoryview(socket.recv())[1:])
    finally:
        socket.close()
        context.term()


def until(watcher, condition):
    """Follows until the snapshot satisfies the condition, and returns it."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        snapshot = watcher.next(0.1)
        if snapshot is not None and condition(snapshot):
            return snapshot
    raise AssertionError(f"never came: last {watcher.snapshot()}")


def has(run_id, **fields):
    def condition(snapshot):
        runs = [v.run for v in snapshot.runs if v.run.run_id == run_id]
        return bool(runs) and all(getattr(runs[0], k) == v for k, v in fields.items())

    return condition
