"""NCCL durations: reading the flight recorder, matching its entries, and how often it is read."""

from __future__ import annotations

import contextlib
import ctypes
import json
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed as dist
from msgspec.structs import astuple

from dpwatch.probe.collectives import cuda_capture as capture_mode
from dpwatch.probe.collectives import flight_recorder as flight
from dpwatch.probe.collectives import observer as collectives
from dpwatch.probe.collectives.cuda_capture import CaptureMode, NoCaptureMode
from dpwatch.probe.collectives.flight_matching import EntryMatcher, ReturnedCall, decode
from dpwatch.probe.collectives.flight_recorder import Flight, Obstacle, ReturnedCalls
from dpwatch.run.derive.summarize import summarize
from dpwatch.run.state.apply import apply
from dpwatch.run.state.run_state import RunState
from dpwatch.wire.messages import Collective, DeviceInfo, Duration
from tests.frames import batch, hello, step

S, MS, US = 1_000_000_000, 1_000_000, 1_000
SHIFT_NS = 1_795_000_000 * S
"""The wall clock less the monotonic one."""


def call(
    at_ns: int, *, seq: int = 0, op: str = "all_reduce", nbytes: int = 80, **more: Any
) -> ReturnedCall:
    told = {"uid": "0", "step": 0, "group": "default", "ranks": 4, "device": 0, **more}
    returned_ns = told.pop("returned_ns", at_ns + 100 * US)
    return ReturnedCall(at_ns, returned_ns, op=op, nbytes=nbytes, seq=seq, **told)


def entry(number: int, at_ns: int, **more: Any) -> dict[str, Any]:
    """An entry as written by `dump_json`; `at_ns` is monotonic."""
    return {
        "record_id": number, "pg_id": 0, "process_group": ["0", "default_pg"],
        "thread_name": "python", "thread_id": "1", "collective_seq_id": number + 1,
        "p2p_seq_id": 0, "op_id": number + 1, "profiling_name": "nccl:all_reduce",
        "time_created_ns": SHIFT_NS + at_ns, "input_sizes": [[4, 5]], "input_dtypes": ["Float"],
        "output_sizes": [[4, 5]], "output_dtypes": ["Float"], "state": "completed",
        "time_discovered_started_ns": 1, "time_discovered_completed_ns": 2, "retired": True,
        "timeout_ms": 600000, "is_p2p": False,
    } | more  # fmt: skip


def dump(*entries: dict[str, Any], version: str = "2.10") -> bytes:
    told = {"version": version, "comm_lib_version": "2.27", "pg_config": {}, "pg_status": {}}
    return json.dumps(told | ({"entries": list(entries)} if entries else {})).encode()


def told(
    matcher: EntryMatcher, entries: list[dict[str, Any]], calls: list[ReturnedCall]
) -> list[tuple[int, int]]:
    found = matcher.durations(decode(dump(*entries)), calls, SHIFT_NS)
    return [(each.seq, duration_ns) for each, duration_ns in found]


# -- whose entry it is ----------------------------------------------------------------------------


def test_an_entry_matches_the_call_in_progress():
    calls = [call(i * MS, seq=i) for i in range(5)]
    entries = [entry(i, i * MS + 50 * US, duration_ms=i + 0.5) for i in range(5)]
    expected = [(i, i * MS + 500 * US) for i in range(5)]
    assert told(EntryMatcher(), entries, calls) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"process_group": ["1", "sub"]},
        {"profiling_name": "nccl:broadcast"},
        {"profiling_name": "gloo:all_reduce"},
        {"profiling_name": "nccl:coalesced"},
        {"input_sizes": [[4, 6]]},
        {"input_dtypes": ["Double"]},
        {"input_dtypes": ["QInt8"]},
        {"is_p2p": True},
        {"time_created_ns": SHIFT_NS + 110 * US},
        {"time_created_ns": SHIFT_NS - 10 * US},
        {"duration_ms": -1.0},
        {"duration_ms": None},
    ],
)
def test_an_entry_that_does_not_match_is_not_reported(other):
    fits = entry(0, 50 * US, duration_ms=1.0)
    assert told(EntryMatcher(), [fits], [call(0)]) == [(0, MS)]
    assert told(EntryMatcher(), [fits | other], [call(0)]) == []


def test_an_ambiguous_match_is_not_reported():
    """Two threads in the same group at once; later one of the calls is forgotten."""
    joiner, calls = EntryMatcher(), [call(0, seq=1), call(20 * US, seq=2)]
    both = entry(0, 50 * US)
    assert told(joiner, [both], calls) == []
    assert told(joiner, [both | {"duration_ms": 1.0}], calls[1:]) == []


def test_two_entries_for_one_call_are_not_reported():
    joiner = EntryMatcher()
    pair = [entry(0, 40 * US, duration_ms=1.0), entry(1, 60 * US)]
    assert told(joiner, pair, [call(0)]) == []
    assert told(joiner, [pair[1] | {"duration_ms": 2.0}], [call(0)]) == []


def test_each_duration_is_reported_once_even_after_a_recorder_reset():
    joiner, calls = EntryMatcher(), [call(i * MS, seq=i) for i in range(3)]
    late = entry(1, MS + 50 * US)
    first = entry(0, 50 * US, duration_ms=1.0)
    assert told(joiner, [first, late], calls) == [(0, MS)]
    assert told(joiner, [first, late | {"duration_ms": 2.0}], calls) == [(1, 2 * MS)]
    assert told(joiner, [first, late | {"duration_ms": 2.0}], calls) == []
    reset = entry(0, 2 * MS + 50 * US, duration_ms=3.0)
    assert told(joiner, [reset], calls) == [(2, 3 * MS)]


def test_bytes_of_all_inputs_of_a_coalesced_call_count():
    several = entry(0, 50 * US, duration_ms=1.0) | {
        "profiling_name": "nccl:all_gather_into_tensor_coalesced",
        "input_sizes": [[3], [2, 2], []],
        "input_dtypes": ["BFloat16", "Long", "Double"],
    }
    assert told(EntryMatcher(), [several], [call(0, op="all_gather", nbytes=6 + 32 + 8)]) == [
        (0, MS)
    ]


def test_unknown_formats_are_refused():
    assert decode(dump()) == []
    with pytest.raises(ValueError, match=r"format is 3\.0"):
        decode(dump(entry(0, 0), version="3.0"))
    for strange in (b"", b"[]", b"{}", b'{"version": "2.1", "entries": [{"record_id": "x"}]}'):
        with pytest.raises(msgspec.DecodeError):
            decode(strange)


# -- torch's own recorder -------------------------------------------------------------------------


class _Elsewhere(collectives.Call):
    """A call whose payload claims to be on a CUDA device."""

    on_host = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]


@pytest.fixture
def gloo(monkeypatch):
    """Calls of a process group of one rank, kept like NCCL's."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(collectives, "calls_to_keep", lambda env: ReturnedCalls())
    monkeypatch.setattr(collectives, "Call", _Elsewhere)
    records: list[Any] = []
    observer = collectives.start(lambda row: records.append(row[0](*row[1:])), lambda: 7)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield SimpleNamespace(observer=observer, records=records)
    finally:
        dist.destroy_process_group()
        observer.close()


def test_entries_of_a_real_recorder_find_their_calls(gloo):
    """gloo's recorder has everything that NCCL's has except durations."""
    gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
    x = torch.ones(4, 5)
    for length in (1, 2, 3):
        dist.all_reduce(torch.ones(length))
        dist.all_reduce(x)
        dist.broadcast(x.bfloat16(), 0)
        dist.all_gather([torch.empty(4, 5)], x)
        gather(torch.empty(4, 5), x)
    raw = torch._C._distributed_c10d._dump_fr_trace_json(includeCollectives=True, onlyActive=False)
    document = json.loads(raw)
    calls = [ReturnedCall(*kept) for kept in gloo.observer.calls.returned]
    assert len(calls) == 15
    mine = [e for e in document["entries"] if e["time_created_ns"] >= time.time_ns() - 60 * S]
    for number, each in enumerate(mine[-15:]):
        each["profiling_name"] = each["profiling_name"].replace("gloo:", "nccl:")
        each["duration_ms"] = number + 1.0
    document["entries"] = mine[-15:]
    shift = flight.NcclRecorder.wall_less_mono_ns(SimpleNamespace())
    found = EntryMatcher().durations(decode(json.dumps(document).encode()), calls, shift)
    assert [(each, ns // MS) for each, ns in found] == [(c, i + 1) for i, c in enumerate(calls)]
    assert [c.op for c in calls[:5]] == [
        "all_reduce", "all_reduce", "broadcast", "all_gather", "all_gather"
    ]  # fmt: skip
    assert {c.step for c in calls} == {7}
    assert [r.seq for r in gloo.records] == [c.seq for c in calls]
    assert all(r.completed_ns is None and r.blocked_ns is None for r in gloo.records)


def test_no_calls_are_kept_unless_enabled(monkeypatch):
    monkeypatch.delenv(flight.TIMING, raising=False)
    observer = collectives.start(lambda record: None, lambda: 0)
    try:
        assert observer.calls is None
    finally:
        observer.close()


def capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def test_point_to_point_calls_are_checked_for_a_capture(gloo, monkeypatch):
    dist.all_reduce(torch.ones(1))
    assert not gloo.observer.calls.captured
    gloo.observer.calls.returned.clear()
    capturing(monkeypatch)
    with contextlib.suppress(RuntimeError, ValueError):  # to itself, which gloo refuses
        torch.ops.c10d.send([torch.ones(1)], dist.group.WORLD.boxed(), 0, 0)
    assert gloo.observer.calls.captured
    assert not gloo.observer.calls.returned


# -- pace and safety ------------------------------------------------------------------------------


class Fake:
    """A recorder on manual clocks; its log says what was done in which order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.entries: list[dict[str, Any]] = []
        self.shift_ns = SHIFT_NS
        self.there = True
        self.now_ns = self.cpu_ns = 0
        self.takes_ns, self.waits_ns = 5 * MS, 0
        self.error: Exception | None = None

    def usable(self) -> bool:
        return self.there

    @contextlib.contextmanager
    def guard(self):
        self.log.append("guard")
        try:
            yield
        finally:
            self.log.append("restore")

    def dump(self) -> bytes:
        self.log.append("dump")
        self.cpu_ns += self.takes_ns
        self.now_ns += self.takes_ns + self.waits_ns
        if self.error is not None:
            raise self.error
        return dump(*self.entries)

    def wall_less_mono_ns(self) -> int:
        return self.shift_ns


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def records() -> list[Any]:
    return []


@pytest.fixture
def reader(fake, records) -> Flight:
    return Flight(
        ReturnedCalls(),
        lambda row: records.append(row[0](*row[1:])),
        fake,
        now_ns=0,
        wall=lambda: fake.now_ns,
        cpu=lambda: fake.cpu_ns,
    )


def dumps_at(reader: Flight, fake: Fake, seconds: range) -> list[int]:
    """The seconds at which it reads if polled once a second."""
    found = []
    for second in seconds:
        before = len(fake.log)
        reader.poll(second * S)
        if len(fake.log) > before:
            found.append(second)
    return found


@pytest.mark.parametrize(
    ("takes_ms", "waits_ms", "expected"),
    [(5, 0, [10, 20, 30, 40]), (12, 0, [10, 22, 34, 46]), (2, 18, [10, 30])],
)
def test_dumps_hold_the_gil_for_a_thousandth_of_the_time(
    reader, fake, takes_ms, waits_ms, expected
):
    fake.takes_ns, fake.waits_ns = takes_ms * MS, waits_ms * MS
    assert dumps_at(reader, fake, range(50)) == expected


def test_a_slow_dump_is_the_last(reader, fake):
    fake.takes_ns = 101 * MS
    assert dumps_at(reader, fake, range(300)) == [10]
    assert reader.note == "a dump of the flight recorder took 101 ms"


def test_each_dump_is_made_in_the_guard(reader, fake):
    dumps_at(reader, fake, range(25))
    assert fake.log == ["guard", "dump", "restore"] * 2


def test_the_mode_is_restored_and_nothing_more_read_after_an_error(reader, fake):
    fake.error = RuntimeError("CUDA error")
    assert dumps_at(reader, fake, range(100)) == [10]
    assert fake.log == ["guard", "dump", "restore"]
    assert reader.note == "RuntimeError: CUDA error"


def test_once_a_collective_was_captured_there_is_no_dump(reader, fake, monkeypatch):
    dumps_at(reader, fake, range(12))
    with monkeypatch.context() as patch:
        capturing(patch)
        reader._calls.note_capture()
    reader._calls.note_capture()
    dumps_at(reader, fake, range(12, 100))
    assert fake.log.count("dump") == 1
    assert "CUDA graph" in reader.note


def test_an_unknown_capture_state_counts_as_captured(monkeypatch):
    def fails() -> bool:
        raise RuntimeError("CUDA")

    calls = ReturnedCalls()
    calls.note_capture()
    assert not calls.captured  # CUDA is not even in use
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", fails)
    calls.note_capture()
    assert calls.captured


def test_no_dump_without_process_groups(reader, fake):
    fake.there = False
    assert dumps_at(reader, fake, range(30)) == []
    fake.there = True
    assert dumps_at(reader, fake, range(30, 40)) == [30]


def test_a_wall_clock_change_discards_pending_calls(reader, fake, records):
    reader._calls.returned.append(astuple(call(9 * S)))
    fake.entries = [entry(0, 9 * S + 50 * US, duration_ms=1.0)]
    fake.shift_ns += MS
    dumps_at(reader, fake, range(21))
    assert records == []
    reader._calls.returned.append(astuple(call(29 * S, seq=1)))
    fake.entries.append(entry(1, 29 * S + 50 * US + MS, duration_ms=2.0))
    dumps_at(reader, fake, range(21, 40))
    assert [(r.seq, r.duration_ns) for r in records] == [(1, 2 * MS)]


def test_the_number_of_kept_calls_is_bounded(reader, fake):
    for i in range(3 * flight.MOST_CALLS):
        reader._calls.returned.append(astuple(call(i * MS)))
    assert len(reader._calls.returned) == flight.MOST_CALLS
    dumps_at(reader, fake, range(11))
    reader._calls.returned.extend([astuple(call(S))] * flight.MOST_CALLS)
    dumps_at(reader, fake, range(11, 30))
    assert len(reader._open) == flight.MOST_CALLS


# -- the figures ----------------------------------------------------------------------------------


def test_the_summary_has_the_recorders_durations(reader, fake, records):
    """20 steps, each an all-gather of 4 MB per rank (2.0, 2.1 … ms) and an all-reduce of 8 MB."""
    frames, steps = [batch(hello(2, kind="cuda", devices=("cuda:0",)))], 20
    for i in range(steps):
        at = i * 100 * MS
        both = [
            call(at, seq=2 * i, op="all_gather", nbytes=4_000_000, step=i, ranks=2),
            call(at + 10 * MS, seq=2 * i + 1, nbytes=8_000_000, step=i, ranks=2),
        ]
        reader._calls.returned.extend(map(astuple, both))
        fake.entries += [
            entry(2 * i, at + 50 * US, input_sizes=[[1_000_000]], duration_ms=2 + i / 10)
            | {"profiling_name": "nccl:_all_gather_base"},
            entry(2 * i + 1, at + 10 * MS + 50 * US, input_sizes=[[2_000_000]], duration_ms=4.0),
        ]
        seen = [Collective(i, c.op, "default", 2, c.seq, c.nbytes, c.issued_ns) for c in both]
        frames.append(batch(*seen, step(i), seq=i + 1))
    dumps_at(reader, fake, range(40))
    assert len(records) == 2 * steps
    assert all(isinstance(r, Duration) for r in records)

    state = RunState("run")
    for frame in [*frames, batch(*records, seq=99)]:
        apply(state, frame)
    run = summarize(state)
    found = {c.op: c for c in run.collectives}
    gather, reduce = found["all_gather"], found["all_reduce"]
    assert gather.latency_ms.p50 == pytest.approx(2.95)
    assert gather.latency_ms.p95 == pytest.approx(2 + 0.1 * 0.95 * 19)
    assert reduce.latency_ms.p50 == reduce.latency_ms.p95 == 4.0
    # Steps 2 to 19 count, whose gathers take 2.2 to 3.9 ms; of the gathered array half travels.
    assert gather.algbw_gbps == pytest.approx(18 * 8e6 / (sum(range(22, 40)) * 1e-4) / 1e9)
    assert gather.busbw_gbps == pytest.approx(gather.algbw_gbps / 2)
    assert reduce.algbw_gbps == pytest.approx(8e6 / 4e-3 / 1e9)
    assert reduce.busbw_gbps == pytest.approx(reduce.algbw_gbps)
    assert gather.exposed_ms_per_step is None
    assert reduce.exposed_ms_per_step is None
    (row,) = run.ranks
    assert row.comm_ms.total == pytest.approx(4 + 3.05)
    assert row.comm_ms.exposed is None


# -- the thread's capture mode --------------------------------------------------------------------


class Runtime:
    """A CUDA runtime that stores the thread's capture mode."""

    def __init__(self, code: int = 0) -> None:
        self.mode, self.modes = 0, []

        def exchange(pointer: Any) -> int:
            value = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int)).contents
            value.value, self.mode = self.mode, value.value
            self.modes.append(self.mode)
            return code

        self.cudaThreadExchangeStreamCaptureMode = exchange


def test_the_mode_is_thread_local_within_and_as_before_after():
    runtime = Runtime()
    for before in (0, 2):
        runtime.mode = before
        with CaptureMode(runtime).thread_local():
            assert runtime.mode == capture_mode.THREAD_LOCAL
        assert runtime.mode == before


def test_a_refusing_runtime_raises_before_any_query():
    with (
        pytest.raises(NoCaptureMode, match="error 999"),
        CaptureMode(Runtime(999)).thread_local(),
    ):
        raise AssertionError("not to be reached")
    with pytest.raises(NoCaptureMode, match="cannot change"):
        CaptureMode(SimpleNamespace())


def test_the_only_loaded_runtime_is_found(tmp_path):
    maps = tmp_path / "maps"
    line = "7f00-7f01 r-xp 00000000 08:01 12   /usr/lib/{}\n"
    maps.write_text(line.format("libc.so.6") + line.format("libcudartless.txt"))
    with pytest.raises(NoCaptureMode, match="no CUDA runtime"):
        capture_mode.find(maps)
    two = "libcudart.so.12", "libcudart-1a2b.so.11.0"
    maps.write_text("".join(map(line.format, two)))
    with pytest.raises(NoCaptureMode, match="more than one"):
        capture_mode.find(maps)
    maps.write_text(line.format(two[0]) * 2)
    with pytest.raises(NoCaptureMode, match="cannot be reached"):  # it isn't loaded really
        capture_mode.find(maps)
    with pytest.raises(NoCaptureMode, match="no CUDA runtime"):
        capture_mode.find(tmp_path / "none")


# -- when it is not read --------------------------------------------------------------------------

TIMED = {flight.TIMING: "1"}


@pytest.mark.parametrize(
    ("env", "says", "advice"),
    [
        ({}, "is not set", "TORCH_NCCL_ENABLE_TIMING=1"),
        ({flight.TIMING: "0", "NCCL_ENABLE_TIMING": "1"}, "is not set", ""),
        (TIMED | {"TORCH_FR_BUFFER_SIZE": "0"}, "off", "unset"),
        (TIMED | {"TORCH_NCCL_TRACE_BUFFER_SIZE": "0"}, "off", "unset"),
        (TIMED | {"TORCH_FR_BUFFER_SIZE": "20000"}, "too long", "=2000"),
        (TIMED | {"TORCH_NCCL_BLOCKING_WAIT": "1"}, "no durations", "unset"),
        (TIMED | {"TORCH_NCCL_CUDA_EVENT_CACHE": "0"}, "not safe", "unset"),
    ],
)
def test_missing_environment_settings_are_reported(env, says, advice):
    found = flight.obstacle(env)
    assert says in found.why
    assert advice in found.advice
    assert flight.calls_to_keep(env) is None


@pytest.fixture
def whole(monkeypatch):
    """A torch that has everything needed."""
    monkeypatch.setattr(flight.torch, "__version__", "2.13.0+cu130")
    c10d = torch._C._distributed_c10d
    monkeypatch.setattr(c10d, "_dump_nccl_trace_json", lambda **_: dump(), raising=False)
    monkeypatch.setattr(capture_mode, "find", lambda: CaptureMode(Runtime()))
    monkeypatch.setattr(torch.cuda, "set_device", lambda ordinal: None)


def test_missing_torch_features_are_reported(whole, monkeypatch):
    for said in ("1", "TRUE", "y"):
        assert flight.obstacle({flight.TIMING: said}) is None
    assert flight.obstacle({"NCCL_ENABLE_TIMING": "1", "TORCH_FR_BUFFER_SIZE": "500"}) is None
    assert flight.calls_to_keep(TIMED) is not None

    def none() -> CaptureMode:
        raise NoCaptureMode("no CUDA runtime")

    with monkeypatch.context() as patch:
        patch.setattr(capture_mode, "find", none)
        assert flight.obstacle(TIMED) == Obstacle("no CUDA runtime")
    with monkeypatch.context() as patch:
        patch.setattr(flight.torch, "__version__", "2.6.0")
        assert "too old" in flight.obstacle(TIMED).why
    with monkeypatch.context() as patch:
        patch.delattr(torch._C._distributed_c10d, "_dump_nccl_trace_json")
        assert "no flight recorder" in flight.obstacle(TIMED).why


def test_the_probe_reads_once_there_are_calls_on_a_cuda_device(rig, whole, monkeypatch):
    source = rig.probe._publisher._source
    source.read_durations(0)
    assert source._flight is None
    monkeypatch.setenv(flight.TIMING, "1")
    calls = rig.collectives.calls = ReturnedCalls()
    source.read_durations(0)  # no device yet
    rig.probe.steps.devices = [DeviceInfo("cuda:1", "cuda")]
    source.read_durations(0)  # no call yet
    assert source._flight is None
    calls.returned.append(astuple(call(0)))
    source.read_durations(0)
    assert source._flight is not None
    assert rig.collectives.calls is calls
    calls.captured = True
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    source.read_durations(20 * S)
    assert source._flight.note
    assert rig.collectives.calls is None  # kept no longer


def test_the_probe_keeps_no_calls_where_it_cannot_read(rig, monkeypatch):
    monkeypatch.setenv(flight.TIMING, "1")  # and this torch has no NCCL
    rig.collectives.calls = ReturnedCalls()
    rig.collectives.calls.returned.append(astuple(call(0)))
    rig.probe.steps.devices = [DeviceInfo("cuda:0", "cuda")]
    rig.probe._publisher._source.read_durations(0)
    assert rig.collectives.calls is None


def test_a_dump_is_asked_for_without_stack_traces(whole, monkeypatch):
    asked: list[dict[str, Any]] = []
    c10d = torch._C._distributed_c10d
    monkeypatch.setattr(c10d, "_dump_nccl_trace_json", lambda **how: asked.append(how) or b"{}")
    recorder = flight.NcclRecorder(0)
    recorder.dump()
    assert asked == [{"includeCollectives": True, "onlyActive": False}]
    assert abs(recorder.wall_less_mono_ns() - (time.time_ns() - time.monotonic_ns())) < S
    assert msgspec.json.decode(dump())["version"] == "2.10"
