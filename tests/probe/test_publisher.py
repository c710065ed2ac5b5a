"""The sender: what is sent when, and that it never waits."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import zmq

from dpwatch.probe.send import hub_link as link_module
from dpwatch.probe.send.hub_link import HUB_PATIENCE_NS, LAUNCHES, HubLink
from dpwatch.probe.send.identity import Identity
from dpwatch.probe.send.publisher import (
    POLL_S,
    RANK_PATIENCE_NS,
    STARTUP_POLL_S,
    WORKER_POLL_S,
    Publisher,
)
from dpwatch.probe.send.recorder import Recorder
from dpwatch.runtime import hub_request, paths
from dpwatch.wire import codec, transport
from dpwatch.wire.messages import (
    Asked,
    Beat,
    Bye,
    Collective,
    DeviceInfo,
    Gpu,
    Hello,
    Output,
    Stacks,
    Step,
)

MS, S = 1_000_000, 1_000_000_000


class Source:
    """Answers a publisher's questions as a test wants."""

    def __init__(self) -> None:
        self.me = Identity(rank=2, world_size=4, local_rank=2)
        self.stepped = self.idle = False
        self.joins = False
        self.rested = 0
        self.worker = ""
        self.failed: Bye | None = None
        self.params: int | None = None
        self.found: list[Gpu] = []
        self.printed: list[Output] = []

    def identify(self) -> Identity:
        return self.me

    def group(self) -> int:
        return int(bool(self.me.backend))

    def has_stepped(self) -> bool:
        return self.stepped

    def complete(self, step: Step) -> Step:
        return step

    def has_left_group(self) -> bool:
        return not self.me.backend and not self.joins

    def is_idle(self) -> bool:
        return self.idle

    def on_idle(self) -> None:
        self.rested += 1

    def failure(self) -> Bye | None:
        return self.failed

    def hello(self, me: Identity) -> Hello:
        devices = [DeviceInfo("cpu", "cpu")]
        told = Hello(me.world_size, me.local_rank, "ddp", me.backend, devices, self.params)
        return msgspec.structs.replace(told, worker=self.worker)

    def beat(self) -> Beat:
        return Beat(0, "")

    def gpus(self) -> list[Gpu]:
        return self.found

    def read_durations(self, now_ns: int) -> None:
        self.asked_ns = now_ns

    def stacks(self, asked: int) -> Stacks | None:
        return Stacks(asked, 0, [])

    def output(self, *, last: bool = False) -> list[Output]:
        found, self.printed = self.printed, []
        return found


def a_step(number: int) -> tuple[Any, ...]:
    return (Step, 0, number, 0, 1)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(200)


def raising(error: BaseException) -> None:
    raise error


def named(recorder, source, link, name: str = "", **more: Any) -> Publisher:
    """A publisher of a run of that name; by default it is named after its ranks."""

    def run_id(me: Identity) -> str:
        return name or ("alone" if me.world_size == 1 else "r")

    return Publisher(recorder, source, link, run_id=run_id, host="h", trouble=raising, **more)


@pytest.fixture
def publisher(recorder, source, link) -> Publisher:
    return named(recorder, source, link)


def kinds(batch: Any) -> list[str]:
    return [type(r).__name__ for r in batch.records]


def test_hello_comes_first_then_beats_and_hello_again(publisher, recorder, source, link):
    source.found = [Gpu(0, 0.5)]
    for turn in range(101):  # five seconds
        publisher.poll(turn * 50 * MS)
    assert kinds(link.batches[0]) == ["Hello", "Beat", "Gpu"]
    assert len(link.records(Hello)) == 3
    assert len(link.records(Beat)) == 11
    assert len(link.records(Gpu)) == 6
    assert (link.batches[0].rank, link.batches[0].run_id, link.batches[0].host) == (2, "r", "h")


def test_hello_comes_on_change(publisher, source, link):
    publisher.poll(0)
    source.params = 7
    publisher.poll(500 * MS)
    assert [h.params for h in link.records(Hello)] == [None, 7]


@pytest.mark.parametrize(("ranks", "answers"), [([], 1), ([1, 2], 1), ([0, 3], 0)])
def test_stacks_are_sent_once_by_the_ranks_asked(publisher, link, ranks, answers):
    publisher.poll(0)
    link.request = Asked(3, ranks)
    for turn in range(1, 41):
        publisher.poll(turn * 50 * MS)
    assert [s.asked for s in link.records(Stacks)] == [3] * answers


def test_records_go_out_in_order_in_frames_of_at_most_64(publisher, recorder, link):
    for n in range(150):
        recorder.append(a_step(n))
    publisher.poll(0)
    assert [s.step for s in link.records(Step)] == list(range(150))
    assert max(len(b.records) for b in link.batches) == codec.MAX_RECORDS
    assert [b.seq for b in link.batches] == [0, 1, 2]
    counts = [len(b.records) for b in link.batches]
    assert [b.sent for b in link.batches] == [0, counts[0], counts[0] + counts[1]]


def a_call(number: int, nbytes: int = 8) -> tuple[Any, ...]:
    return (Collective, 0, "all_reduce", "default", 4, number, nbytes, 9 * S + number)


def test_collectives_and_steps_are_packed_and_counted_singly(publisher, recorder, source, link):
    source.me = Identity(rank=2, world_size=64, local_rank=2)
    for n in range(40):
        for record in (*map(a_call, (3 * n, 3 * n + 1, 3 * n + 2)), (Step, 0, n, 9 * S - 1, 9 * S)):
            recorder.append(record)
    publisher.poll(0)
    recorder.append(a_step(40))
    publisher.poll(S)
    first, second = link.batches
    assert kinds(first)[-2:] == ["Calls", "Steps"]
    assert [c.seq for c in link.records(Collective)] == list(range(120))
    assert [s.step for s in link.records(Step)] == list(range(41))
    assert second.sent == len(first.records) - 2 + 120 + 40


def test_with_few_ranks_records_are_not_packed(publisher, recorder, link):
    recorder.append(a_call(1))
    recorder.append(a_call(2))
    publisher.poll(0)
    assert kinds(link.batches[0]) == ["Hello", "Beat", "Collective", "Collective"]


def test_calls_that_do_not_pack_take_more_frames(publisher, recorder, source, link):
    source.me = Identity(rank=2, world_size=64, local_rank=2)
    for n in range(190):
        recorder.append((*a_call(n, n), None, None, "", 0, "", None, "x" * 1500 + str(n)))
    publisher.poll(0)
    assert sorted(c.seq for c in link.records(Collective)) == list(range(190))
    assert max(len(b.records) for b in link.batches) <= codec.MAX_RECORDS
    sent = [b.sent for b in link.batches]
    assert sent == sorted(sent)
    assert sent[0] == 0


@pytest.mark.parametrize(
    ("ranks", "young", "frames"), [(4, 16, 8), (32, 16, 8), (64, 8, 8), (65, 4, 4), (513, 2, 2)]
)
def test_frame_intervals_depend_on_age_and_world_size(
    publisher, recorder, source, link, ranks, young, frames
):
    source.me = Identity(rank=2, world_size=ranks, local_rank=2)
    for begins_ms, expected in (0, young), (20_000, frames):
        link.frames.clear()
        for turn in range(16):  # two seconds
            recorder.append(a_step(turn))
            publisher.poll((begins_ms + turn * 125) * MS)
        assert len(link.batches) == expected


def test_unsent_records_are_kept_and_dropped_ones_counted(publisher, recorder, link):
    link.full = True
    publisher.poll(0)
    for n in range(250):
        recorder.append(a_step(n))
    publisher.poll(50 * MS)
    assert link.frames == []
    assert publisher.dropped == 50
    link.full = False
    publisher.poll(100 * MS)
    assert kinds(link.batches[0])[0] == "Hello"
    assert [s.step for s in link.records(Step)] == list(range(50, 250))
    assert link.batches[-1].dropped == 50
    assert [b.seq for b in link.batches] == list(range(len(link.batches)))


def test_a_bad_record_costs_only_itself(publisher, recorder, link):
    recorder.append(a_step(0))
    recorder.append((Step, 0))
    recorder.append(a_step(1))
    publisher.poll(0)
    assert [s.step for s in link.records(Step)] == [0, 1]
    assert publisher.dropped == 1


def test_an_unknown_rank_delays_sending(publisher, recorder, source, link):
    source.me = Identity(rank=0, world_size=1, local_rank=0, known=False)
    recorder.append(a_step(0))
    publisher.poll(0)
    publisher.poll(RANK_PATIENCE_NS - 1)
    assert link.opened == []
    source.me = Identity(rank=3, world_size=4, local_rank=3, backend="gloo")
    publisher.poll(RANK_PATIENCE_NS - 1)
    assert link.opened == [("r", 3)]
    assert link.batches[0].rank == 3


@pytest.mark.parametrize("stepped", [True, False])
def test_an_unknown_rank_does_not_delay_sending_forever(publisher, source, link, stepped):
    source.me = Identity(rank=0, world_size=1, local_rank=0, known=False)
    source.stepped = stepped
    publisher.poll(0)
    publisher.poll(0 if stepped else RANK_PATIENCE_NS)
    assert link.opened == [("alone", 0)]


def test_a_process_that_joins_a_group_late_switches_to_its_run(publisher, recorder, source, link):
    source.me = Identity(rank=0, world_size=1, local_rank=0)
    recorder.append(a_step(0))
    publisher.poll(0)
    source.me = Identity(rank=3, world_size=4, local_rank=3, backend="gloo")
    recorder.append(a_step(1))
    publisher.poll(125 * MS)
    assert link.opened == [("alone", 0), ("r", 3)]
    alone = [b for b in link.batches if b.run_id == "alone"]
    joined = [b for b in link.batches if b.run_id == "r"]
    assert alone[-1].records == [Bye("finished", then="next")]
    assert [b.seq for b in joined] == [0]
    assert (joined[0].rank, kinds(joined[0])) == (3, ["Hello", "Beat", "Step"])
    assert [s.step for s in link.records(Step)] == [0, 1]  # nothing is lost on the way


def test_a_joining_rank_is_identified_within_a_second(publisher, recorder, source, link):
    source.me = Identity(rank=0, world_size=1, local_rank=0)
    publisher.poll(0)
    source.me = Identity(rank=3, world_size=4, local_rank=3)  # as it has given it, in no group yet
    for turn in range(1, 9):
        publisher.poll(turn * 125 * MS)
    assert link.opened == [("alone", 0), ("r", 3)]


def test_a_single_process_refreshes_its_identity_every_second(publisher, source, monkeypatch):
    asked = []
    monkeypatch.setattr(source, "identify", lambda: asked.append(0) or source.me)
    source.me = Identity(rank=0, world_size=1, local_rank=0)
    for turn in range(8 * 60):
        publisher.poll(turn * 125 * MS)
    assert len(asked) in (60, 61)


def test_a_pool_worker_pauses_when_its_task_ends(publisher, recorder, source, link):
    source.me = Identity(rank=0, world_size=1, local_rank=0)
    recorder.append(a_step(0))
    publisher.poll(0)
    source.idle = True
    for turn in range(1, 40):
        publisher.poll(turn * 125 * MS)
    assert link.batches[-1].records[-1] == Bye("finished", then="idle")
    assert link.closed.is_set()
    assert (publisher.paused, source.rested) == (True, 1)
    told = len(link.frames)
    publisher.close(Bye("finished", then="idle"))
    publisher.finish()
    assert len(link.frames) == told  # the hub knows


def test_a_paused_worker_resumes_sending(publisher, recorder, source, link):
    source.me = Identity(rank=0, world_size=1, local_rank=0)
    publisher.poll(0)
    source.idle = True
    for turn in range(1, 20):
        publisher.poll(turn * 125 * MS)
    assert publisher.paused
    source.idle = False
    recorder.append(a_step(7))
    publisher.poll(9 * S)
    assert kinds(link.batches[-1])[:1] == ["Hello"]
    assert link.opened == [("alone", 0)] * 2
    assert [b.seq for b in link.batches] == list(range(len(link.batches)))


def test_leaving_the_group_counts_as_finished_unless_training_continues(
    publisher, recorder, source, link
):
    """Ray ends its workers like that: it destroys their group, and then kills them."""
    publisher.poll(0)
    source.me = Identity(rank=2, world_size=4, local_rank=2, backend="gloo")
    publisher.poll(S)
    source.me, source.joins = Identity(rank=2, world_size=4, local_rank=2), True
    for turn in range(8, 40):
        publisher.poll(turn * 125 * MS)
    assert not publisher.paused  # it waits for the others of the next one
    source.joins = False
    for turn in range(40, 60):
        publisher.poll(turn * 125 * MS)
    assert link.batches[-1].records[-1] == Bye("finished", then="idle")
    assert (publisher.paused, publisher.task_over, source.rested) == (True, False, 0)
    source.me = Identity(rank=2, world_size=4, local_rank=2, backend="gloo")  # joined anew
    recorder.append(a_step(0))
    publisher.poll(9 * S)
    assert not publisher.paused
    assert [(b.rank, b.run_id) for b in link.batches] == [(2, "r")] * len(link.batches)


def test_after_an_idle_goodbye_only_output_is_sent(publisher, recorder, source, link):
    def rest():
        source.idle = False
        recorder.append(a_step(0))
        for turn in range(4):
            publisher.poll(turn * S)
        source.idle = True
        for turn in range(4, 8):
            publisher.poll(turn * S)
        assert publisher.paused

    rest()
    sent = len(link.batches)
    publisher._bye = Bye("finished")
    publisher.finish()
    assert len(link.batches) == sent
    source.printed = [Output("out", [])]
    publisher.finish()
    assert [type(each) for each in link.batches[-1].records[-2:]] == [Output, Bye]


def test_an_unsent_goodbye_is_kept(publisher, source, link):
    source.me = Identity(rank=0, world_size=1, local_rank=0)
    publisher.poll(0)
    source.idle, link.full = True, True
    for turn in range(1, 20):
        publisher.poll(turn * 125 * MS)
    assert not publisher.paused
    link.full = False
    publisher.poll(4 * S)
    assert publisher.paused
    assert link.records(Bye) == [Bye("finished", then="idle")]


def test_the_previous_run_is_told_of_the_next(recorder, source, link):
    first = named(recorder, source, link, "first")
    first.start()
    first.close(Bye("finished"), timeout_s=20)
    second = named(recorder, source, link, "second", before=first)
    second.poll(0)
    told = [(b.run_id, b.records[-1]) for b in link.batches if kinds(b)[-1] == "Bye"]
    assert told == [("first", Bye("finished")), ("first", Bye("finished", then="next"))]
    assert link.batches[-1].run_id == "second"
    assert [b.seq for b in link.batches if b.run_id == "first"] == [0, 1]


def test_a_failed_script_is_reported_once_while_its_process_lives(publisher, source, link):
    publisher.poll(0)
    source.failed = Bye("failed", "ValueError: boom")
    for turn in range(1, 40):
        publisher.poll(turn * 125 * MS)
    assert link.records(Bye) == [Bye("failed", "ValueError: boom")]


@pytest.mark.parametrize(
    ("worker", "there", "now_s", "pause_s"),
    [
        ("SpawnPoolWorker-1", True, 1, WORKER_POLL_S),
        ("SpawnPoolWorker-1", False, 1, POLL_S),  # nobody takes what it would send
        ("SpawnPoolWorker-1", True, 11, POLL_S),
        ("", True, 1, POLL_S),
    ],
)
def test_a_new_pool_worker_sends_at_once(recorder, source, link, worker, there, now_s, pause_s):
    source.worker, link.hub_seen = worker, there
    publisher = named(recorder, source, link, wall=lambda: now_s * S)
    assert publisher._pause_s == STARTUP_POLL_S
    publisher.poll(0)
    assert publisher._pause_s == pause_s


def test_a_destroyed_process_group_keeps_the_rank(publisher, source, link):
    source.me = Identity(rank=3, world_size=4, local_rank=3, backend="gloo")
    publisher.poll(0)
    source.me = Identity(rank=0, world_size=1, local_rank=0, known=False)
    publisher.poll(2 * S)
    assert [b.rank for b in link.batches] == [3, 3]


def test_the_last_turn_sends_all_and_bye(publisher, recorder, link):
    publisher.start()
    for n in range(100):
        recorder.append(a_step(n))
    publisher.close(Bye("failed", "why"), timeout_s=20)
    assert link.closed.is_set()
    assert [s.step for s in link.records(Step)] == list(range(100))
    assert link.batches[-1].records[-1] == Bye("failed", "why")


def test_records_made_by_the_last_heartbeat_are_sent(publisher, recorder, source, link):
    """Such as collectives that were in progress when their records left, but are now complete."""
    publisher.poll(0)
    recorder.append(a_step(0))

    def beat() -> Beat:
        assert not len(recorder), "it tells what all records have come to"
        recorder.append(a_step(1))
        return Beat(0, "")

    source.beat = beat
    publisher.close(Bye("finished", ""))
    publisher.finish()
    assert [kinds(each) for each in link.batches[-3:-1]] == [["Step"], ["Step"]]
    assert kinds(link.batches[-1])[-1] == "Bye"
    assert not len(recorder)


def test_recorder_drops_the_oldest_and_counts():
    recorder = Recorder(3)
    for n in range(5):
        recorder.append((n,))
    assert recorder.dropped == 2
    assert recorder.drain(2) == [(2,), (3,)]
    assert recorder.drain(9) == [(4,)]
    recorder.silence()
    recorder.append((9,))
    assert len(recorder) == 0


def test_recorder_loses_nothing_between_threads():
    recorder, taken = Recorder(100_000), []
    threads = [
        threading.Thread(target=lambda k=k: [recorder.append((k, n)) for n in range(3000)])
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or len(recorder):
        taken += recorder.drain(64)
    for k in range(4):
        assert [n for who, n in taken if who == k] == list(range(3000))
    assert recorder.dropped == 0


# -- the real socket ---------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_handlers(monkeypatch):
    """Resets what other tests have done to SIGCHLD."""
    monkeypatch.setattr(link_module.spawn, "handles_sigchld", lambda: False)


@pytest.fixture
def launched(monkeypatch) -> list[paths.RunDir]:
    """Where hubs would have been started."""
    places: list[paths.RunDir] = []
    monkeypatch.setattr(link_module.spawn, "ensure_hub", places.append)
    return places


@pytest.fixture
def hub_link(launched) -> Iterator[HubLink]:
    made = HubLink()
    yield made
    made.close()


@pytest.fixture
def bound() -> Iterator[Callable[[str], Any]]:
    context = zmq.Context()
    sockets = []

    def bind(run_id: str, **options: int) -> Any:
        socket = context.socket(zmq.PULL)
        for name, value in options.items():
            socket.setsockopt(getattr(zmq, name), value)
        socket.bind(paths.run_dir(run_id).ingest)
        sockets.append(socket)
        return socket

    yield bind
    for socket in sockets:
        socket.close(linger=0)
    context.term()


def test_with_no_hub_sends_fail_at_once_and_close_ends(hub_link):
    hub_link.open("none", 0)
    sent = [hub_link.send(b"x") for _ in range(transport.PUSH_HWM + 5)]
    assert sent == [True] * transport.PUSH_HWM + [False] * 5
    hub_link.close()


def test_frames_sent_before_the_hub_started_arrive(hub_link, bound):
    hub_link.open("late", 0)
    assert all(hub_link.send(bytes([n])) for n in range(10))
    socket = bound("late")
    assert [socket.recv() for _ in range(10)] == [bytes([n]) for n in range(10)]


def test_a_hub_that_never_reads_never_blocks(bound, hub_link, recorder, source):
    bound("stopped", RCVHWM=1, RCVBUF=4096)
    publisher = Publisher(
        recorder, source, hub_link, run_id=lambda me: "stopped", host="h", trouble=raising
    )
    stuck = 0
    for turn in range(20_000):
        for n in range(64):
            recorder.append(a_step(n))
        publisher.poll(turn * 50 * MS)
        stuck = stuck + 1 if publisher._unsent is not None else 0
        if stuck > 100:
            break
    assert stuck > 100
    assert publisher.dropped > 64 * 90
    publisher._stop.set()
    publisher._bye = Bye("finished")
    publisher.finish()


def test_bye_arrives_even_if_the_process_exits_at_once(bound, hub_link, recorder, source):
    socket = bound("brief")
    publisher = Publisher(
        recorder, source, hub_link, run_id=lambda me: "brief", host="h", trouble=raising
    )
    publisher.start()
    publisher.close(Bye("finished"), timeout_s=20)
    assert socket.poll(20_000)
    assert codec.decode(socket.recv()).records[-1] == Bye("finished")


def test_the_first_rank_starts_the_hub_at_once(hub_link, launched):
    hub_link.open("mine", 0)
    hub_link.ensure_hub(0)
    assert [place.run_id for place in launched] == ["mine"]
    for turn in range(1, 10):
        hub_link.ensure_hub(turn * HUB_PATIENCE_NS)
    assert len(launched) == LAUNCHES


def test_other_ranks_start_it_only_when_the_first_does_not(hub_link, launched):
    hub_link.open("ours", 1)
    hub_link.ensure_hub(0)
    hub_link.ensure_hub(HUB_PATIENCE_NS - 1)
    assert launched == []
    hub_link.ensure_hub(HUB_PATIENCE_NS)
    assert len(launched) == 1


def test_under_dpwatch_run_the_hub_is_requested_first(
    hub_link, launched, monkeypatch, private_runtime
):
    monkeypatch.setenv(hub_request.SESSION, "abc")
    session = hub_request.Session(private_runtime, "abc")
    hub_link.open("mine", 0)
    hub_link.ensure_hub(0)
    wanted = hub_request.read(paths.RunDir(private_runtime / "mine"))
    assert (wanted.pid, wanted.environment[hub_request.SESSION]) == (os.getpid(), "abc")
    assert launched == []
    hub_link.ensure_hub(HUB_PATIENCE_NS)
    assert len(launched) == 1
    session.close()


def test_without_a_local_session_a_rank_starts_the_hub_at_once(hub_link, launched, monkeypatch):
    monkeypatch.setenv(hub_request.SESSION, "abc")
    hub_link.open("mine", 0)
    hub_link.ensure_hub(0)
    assert len(launched) == 1


@pytest.mark.parametrize("obstacle", ["handler", "no python"])
def test_a_rank_that_must_not_start_a_process_waits_for_a_viewer(
    hub_link, launched, monkeypatch, private_runtime, capsys, obstacle
):
    name = "handles_sigchld" if obstacle == "handler" else "python"
    found = True if obstacle == "handler" else None
    monkeypatch.setattr(link_module.spawn, name, lambda: found)
    hub_link.open("mine", 0)
    for turn in range(4):
        hub_link.ensure_hub(turn * HUB_PATIENCE_NS)
    assert launched == []
    assert hub_request.read(paths.RunDir(private_runtime / "mine")) is not None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "`dpwatch` in another terminal" in said
    assert hub_link.patience_s < 1  # nobody may ever come
    hub_link.close()
    assert list(private_runtime.iterdir()) == []


def test_a_frame_after_close_goes_to_a_running_hub(hub_link, bound, private_runtime):
    hub_link.open("over", 0)
    hub_link.close()
    hub_link.send_after_close(b"nobody hears it")
    assert list(private_runtime.iterdir()) == []
    socket = bound("over")
    lock = paths.run_dir("over").try_lock()
    hub_link.send_after_close(b"word")
    assert socket.recv() == b"word"
    os.close(lock)


def test_no_hub_is_started_beside_a_running_one(hub_link, launched):
    lock = paths.run_dir("there").try_lock()
    assert lock is not None
    hub_link.open("there", 0)
    hub_link.ensure_hub(time.monotonic_ns())
    assert launched == []


def test_a_link_that_never_had_a_hub_leaves_no_directory(private_runtime):
    hub_link = HubLink()
    hub_link.open("run", 0)
    assert (private_runtime / "run").is_dir()
    hub_link.close()
    assert list(private_runtime.iterdir()) == []


def test_a_very_short_run_starts_a_hub_too(publisher, link):
    publisher.close(Bye("failed", "over"))
    publisher.finish()
    assert link.tended == 1
    assert kinds(codec.decode(link.frames[-1])) == ["Hello", "Beat", "Bye"]


def test_a_process_without_files_left_opens_no_socket(hub_link):
    """libzmq would abort it: the probe turns itself off instead."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert transport.has_room()
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        with pytest.raises(OSError, match="ulimit -n"):
            hub_link.open("run", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_invalid_unicode_costs_only_its_frame(publisher, recorder, link):
    recorder.append((Step, 0, 0, 0, 1))
    publisher.poll(0)
    recorder.append((Bye, "failed", "\ud800"))
    publisher.poll(S)
    recorder.append((Step, 0, 1, 1, 2))
    publisher.poll(2 * S)
    assert [s.step for s in link.records(Step)] == [0, 1]
    assert publisher.dropped >= 1
