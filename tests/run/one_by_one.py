"""Reference implementation of adding calls to the sums: one by one, as they arrive.

It is plain Python, so that it can be checked by reading it.
"""

from dpwatch.plan.traffic import wire_bytes
from dpwatch.quantiles import median
from dpwatch.run.state import bounds, generations
from dpwatch.run.state.apply import apply
from dpwatch.run.state.arrivals import fingerprint, matched_call, open_calls_limit
from dpwatch.run.state.call_entries import Kinds, open_calls, table_of
from dpwatch.run.state.call_tallies import _begin, _exchanged
from dpwatch.run.state.flush import flush
from dpwatch.run.state.late_durations import LATENCIES
from dpwatch.run.state.records import apply_record
from dpwatch.run.state.run_state import RunState
from dpwatch.run.state.series import (
    CALLS,
    NBYTES,
    TIMED_CALLS,
    TIMED_NS,
    WAIT_NS,
    WAITED_CALLS,
    WAITED_NS,
    WIRE,
)
from dpwatch.wire.batching import unpack
from dpwatch.wire.calls import signature_of
from dpwatch.wire.collectives import MESSAGES
from dpwatch.wire.messages import Collective, Duration


class OneByOne:
    """A run's state that adds calls one by one.

    Attributes:
        open: Calls that wait for ranks: by position, each rank's call.
        given_up: Number of open calls dropped to stay within the limit.
    """

    def __init__(self):
        self.state = RunState("run")
        self.open = {}
        self.given_up = 0

    def apply(self, frame):
        """Applies a frame: its calls here, everything else with the product's code."""
        records = list(unpack(frame.records))
        known = self.state.ranks.get(frame.rank)
        apply(self.state, replaced(frame, [r for r in records if not late_or_call(r)]))
        flush(self.state)
        if known is not None and known.pid != frame.pid:
            self.forget(frame.rank)
        rank = self.state.ranks[frame.rank]
        for record in records:
            if isinstance(record, Collective):
                told = generations.in_run(self.state, rank, record)
                try:
                    self.call(rank, told)
                except bounds.LimitReached:
                    rank.refused += 1
            elif isinstance(record, Duration):
                apply_record(self.state, rank, record)
        rank.taken += sum(map(late_or_call, records))

    def forget(self, rank):
        for place in list(self.open):
            self.open[place].pop(rank, None)
            if not self.open[place]:
                del self.open[place]

    def call(self, rank, call):
        state, key = self.state, f"{call.op}/{call.group}"
        lane = rank.lanes.get(call.device) or state.lane(rank, call.device)
        if key not in lane.calls:
            _begin(state, rank, lane, signature_of(call))
        took_ns = None if call.completed_ns is None else call.completed_ns - call.issued_ns
        at, cells = lane.calls[key].at(call.step), lane.calls[key].cells
        if at is not None:
            cells[at + CALLS] += 1
            cells[at + NBYTES] += call.nbytes
            cells[at + WIRE] += wire_bytes(call.op, call.nbytes, call.ranks)
            cells[at + WAITED_CALLS] += call.blocked_ns is not None
            cells[at + WAITED_NS] += call.blocked_ns or 0
            cells[at + TIMED_CALLS] += took_ns is not None
            cells[at + TIMED_NS] += took_ns or 0
        if took_ns is not None:
            latencies = state.ops[key].latency_ms
            latencies.append(took_ns / 1e6)
            if len(latencies) > 2 * LATENCIES:
                del latencies[:-LATENCIES]
        if call.op not in MESSAGES:
            self.enter(rank.rank, call)
        elif call.peer is not None:
            _exchanged(state, rank, f"{call.op}/{call.peer}", call.step, 1, call.nbytes)

    def enter(self, r, call):
        place = call.group, call.generation, call.seq
        entered = self.open.setdefault(place, {})
        if len(self.open) > open_calls_limit(call.ranks):
            del self.open[next(iter(self.open))]
            self.given_up += 1
        entered[r] = call
        if len(entered) < call.ranks:
            return
        self.open.pop(place, None)
        if len({fingerprint(each) for each in entered.values()}) > 1:
            self.state.arrivals.record_mismatch(call.group, call.seq, entered)
        else:
            matched = matched_call(signature_of(call), call.seq, call.step)
            self.state.arrivals.record_match(call.group, matched)
        if len(entered) > 1:
            steps = {r: each.step for r, each in entered.items()}
            self.state.offsets.record(call.group, steps, call.generation)
            self.wait(entered)

    def wait(self, entered):
        """Records the last arrival, and how long each other rank waited for it."""
        state = self.state
        hosts = {state.ranks[r].host for r in entered if r in state.ranks}
        issued_ns = [each.issued_ns for each in entered.values()]
        last_ns = max(issued_ns)
        if state.clock_error_ns(hosts) is None or last_ns - min(issued_ns) > bounds.APART_NS:
            return
        for r, call in entered.items():
            rank = state.ranks.get(r)
            if rank is not None and call.issued_ns < last_ns:
                wait_ns = rank.waits.add(call.issued_ns, last_ns)
                by_step = rank.lanes[call.device].calls[f"{call.op}/{call.group}"]
                at = by_step.at(call.step) if wait_ns else None
                if at is not None:
                    by_step.cells[at + WAIT_NS] += wait_ns
        if min(call.step for call in entered.values()) > 0:
            self.book_last(entered, sorted(issued_ns))

    def book_last(self, entered, issued_ns):
        last_ns, count = issued_ns[-1], len(issued_ns)
        latest = [r for r, each in entered.items() if each.issued_ns == last_ns]
        waited_ns = count * last_ns - sum(issued_ns)
        call = entered[latest[-1]]
        others = [each for r, each in entered.items() if r != latest[-1]]
        typical = median(each.into_ns for each in others if each.phase == call.phase)
        unknown = call.into_ns is None or typical is None
        self.state.ops[f"{call.op}/{call.group}"].book_last(latest[0], waited_ns // (count - 1))
        self.state.arrivals.keep_late(
            latest[-1],
            call,
            last_ns - issued_ns[-2],
            last_ns - issued_ns[(count - 1) // 2],
            waited_ns // count,
            lambda: None if unknown else int(call.into_ns - typical),
        )

    def finish(self):
        """The state, with open calls in the product's format."""
        kinds = Kinds()
        each = [(r, call) for entered in self.open.values() for r, call in entered.items()]
        self.state.arrivals.open = open_calls(table_of(each, kinds), kinds.all)
        return self.state


def late_or_call(record):
    return isinstance(record, Collective | Duration)


def replaced(frame, records):
    """A frame with other records but the same counts."""
    values = {name: getattr(frame, name) for name in frame.__struct_fields__}
    return type(frame)(**values | {"records": records})
