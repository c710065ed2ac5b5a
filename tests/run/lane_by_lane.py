"""Reference implementation of lane figures: lane by lane, in plain Python."""

import math
from itertools import compress

from dpwatch.run.derive.lane_metrics import MEANS, PHASE_FIELDS, SHARES
from dpwatch.run.derive.rank_metrics import (
    DEVICE_TIMES,
    CallFigures,
    Figures,
    OpFigures,
    StepFigures,
    complete_steps,
    op_of,
    per_step_ms,
    traffic_steps,
    waited_ms,
)
from dpwatch.run.state.series import Tally, summed


def figures_of(state, lanes, common):
    return Figures(
        [_of_steps(lane) for lane in lanes],
        [_of_calls(state.ranks[lane.rank], lane, common) for lane in lanes],
        lambda key: _of_op(_cells(state, key)),
    )


def _of_steps(lane):
    steps = lane.recent.steps(lane.device)
    took = {id(s): s.end_ns - s.start_ns for s in steps}

    def known(name, some=steps):
        return [s for s in some if getattr(s, name) is not None]

    def not_first(some):
        return [s for s in some if s.step] or some

    def mean_ms(some, value):
        some = not_first(some)
        return sum(map(value, some)) / len(some) / 1e6 if some else None

    def share(some, name):
        wall = sum(took[id(s)] for s in some)
        return sum(getattr(s, name) for s in some) / wall if wall else None

    exposed_ms, comm_ms = (mean_ms(known(name), lambda s, n=name: getattr(s, n)) for name in MEANS)
    rated = not_first(known("samples"))
    wall_ns = sum(took[id(s)] for s in rated)
    phases = [[getattr(s, name) for s in known(name)] for name in PHASE_FIELDS]
    return StepFigures(
        p50_ms=quantile_ms(list(took.values()), 0.5),
        p95_ms=quantile_ms(list(took.values()), 0.95),
        last_ms=took[id(steps[-1])] / 1e6 if steps else None,
        phases_ms=tuple(quantile_ms(values, 0.5) for values in phases),
        timed=any(phases[i] for i in DEVICE_TIMES),
        exposed_ms=exposed_ms,
        comm_ms=comm_ms,
        mean_ms=mean_ms(steps, lambda s: took[id(s)]),
        exposed_share=share(not_first(known("exposed_ns")), "exposed_ns"),
        shares=tuple(share(known(name), name) for name in SHARES),
        samples_per_s=sum(s.samples for s in rated) * 1e9 / wall_ns if wall_ns else None,
    )


def _of_calls(rank, lane, common):
    steps, shared = complete_steps(rank.whole_steps), traffic_steps(rank, common)
    callers = [each for each in rank.lanes.values() if each.calls and lane.device == 0]
    if not lane.calls and not callers:
        return CallFigures(None, None, None, None, None, 0.0)

    def per_step(other):
        some = [each.over(shared) for key, each in lane.calls.items() if op_of(key) != other]
        wire = sum(tally.wire_bytes for each in some for tally in each)
        return wire / len(shared) if shared else None

    waits_ns = [tally.wait_ns for each in callers for tally in _tallies(each, steps)]
    waited = waited_ms(*_waited(_tallies(lane, steps)), len(steps)) if lane.calls else None
    wait_ms = sum(waits_ns) / len(steps) / 1e6 if callers and steps else None
    busy = [tally for tally in _tallies(lane, steps) if tally.calls]
    timed = [tally.timed_ns for tally in busy if tally.timed_calls >= tally.calls]
    return CallFigures(
        sent_bytes=per_step("recv"),
        received_bytes=per_step("send"),
        wait_ms=wait_ms,
        waited_ms=waited,
        timed_ms=sum(timed) / len(timed) / 1e6 if timed else None,
        busy=len(busy) / len(steps) if steps else 0.0,
    )


def _tallies(lane, steps):
    each = [by_step.over(steps) for by_step in lane.calls.values()]
    return [summed(of) for of in zip(*each, strict=True)] if each else [Tally() for _ in steps]


def _cells(state, key):
    for rank in state.ranks.values():
        steps = complete_steps(rank.whole_steps)
        each = [lane.calls[key].over(steps) for lane in rank.lanes.values() if key in lane.calls]
        yield from (summed(of) for of in zip(*each, strict=True))


def _of_op(cells):
    cells = list(cells)
    timed = list(compress(cells, [tally.timed_calls for tally in cells]))
    return OpFigures(
        cells=len(cells),
        calls=sum(tally.calls for tally in cells),
        nbytes=sum(tally.nbytes for tally in cells),
        timed_ns=sum(tally.timed_ns for tally in timed),
        moved=math.fsum(tally.nbytes * tally.timed_calls / tally.calls for tally in timed),
        waited_ms=per_step_ms(*_waited(cells), len(cells)),
    )


def _waited(cells):
    busy = [tally for tally in cells if tally.calls]
    known = [tally.waited_ns for tally in busy if tally.waited_calls >= tally.calls]
    return sum(known), len(known), len(busy)


def quantile_ms(values_ns, q):
    """Linearly interpolated, as numpy's default."""
    if not values_ns:
        return None
    ordered = sorted(values_ns)
    place = q * (len(ordered) - 1)
    low = int(place)
    below, above = (ordered[min(i, len(ordered) - 1)] / 1e6 for i in (low, low + 1))
    return below + (above - below) * (place - low)
