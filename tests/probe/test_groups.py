"""Process groups come and go: names, generations, and no references kept."""

import gc
import weakref

import pytest
import torch
import torch.distributed as dist

from dpwatch.probe.collectives import observer as collectives
from dpwatch.probe.collectives.calls import Call, Group
from dpwatch.wire.messages import Collective


@pytest.fixture
def observed():
    rows = []
    observer = collectives.start(rows.append, lambda: 0)
    observer.rows = rows
    yield observer
    observer.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def init():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def told(observer):
    """Group, generation and number of each call so far."""
    made = [row[0](*row[1:]) for row in observer.rows]
    observer.rows.clear()
    return [(call.group, call.generation, call.seq) for call in made if type(call) is Collective]


def places(observer):
    return {(each.group, each.generation, each.seq) for each in observer.positions()}


def test_a_recreated_world_numbers_its_calls_from_0(observed):
    for generation in range(3):
        init()
        for _ in range(2):
            dist.all_reduce(torch.ones(1))
        assert told(observed) == [("default", generation, 0), ("default", generation, 1)]
        assert places(observed) == {("default", generation, 1)}
        dist.destroy_process_group()


def test_a_group_that_is_recreated_repeatedly_keeps_its_name(observed):
    init()
    for generation in range(50):
        group = dist.new_group([0])
        dist.barrier(group)
        assert told(observed) == [("ranks 0", generation, 0)]
        dist.destroy_process_group(group)
    del group
    gc.collect()
    assert places(observed) == set()
    assert not observed._groups._groups


def test_coexisting_groups_of_the_same_ranks_have_different_names(observed):
    init()
    one, two = dist.new_group([0]), dist.new_group([0])
    for group in (one, two, one):
        dist.barrier(group)
    assert told(observed) == [("ranks 0", 0, 0), ("ranks 0 #2", 0, 0), ("ranks 0", 0, 1)]
    dist.destroy_process_group(one)
    three = dist.new_group([0])
    for group in (two, three):
        dist.barrier(group)
    assert told(observed) == [("ranks 0 #2", 0, 1), ("ranks 0", 1, 0)]


def test_a_destroyed_group_used_by_cpp_keeps_counting(observed):
    init()
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    before = told(observed)[-1]
    dist.destroy_process_group()
    model(torch.ones(1, 2)).sum().backward()  # torch lets it
    after = told(observed)[0]
    assert after[:2] == before[:2]
    assert after[2] == before[2] + 1


def test_groups_and_works_are_not_kept_alive(observed):
    gc.collect()
    gc.disable()
    try:
        init()
        dist.all_reduce(torch.ones(1))
        waited, dropped = (dist.all_reduce(torch.ones(1), async_op=True) for _ in range(2))
        waited.wait()
        alive = [weakref.ref(thing) for thing in (waited, dropped, dist.group.WORLD)]
        del waited, dropped
        dist.destroy_process_group()
        told(observed)
        observed.positions()
        assert [ref() for ref in alive] == [None] * len(alive)
        assert not [each for each in gc.get_objects() if type(each) in (Group, Call)]
    finally:
        gc.enable()


def test_a_call_without_a_wait_is_eventually_closed(observed):
    init()
    dist.all_reduce(torch.ones(1), async_op=True)  # dropped at once
    work = dist.all_reduce(torch.ones(1), async_op=True)
    told(observed)
    observed.positions()
    assert len(observed._reports._under_way) == 1
    work.wait()
    observed.positions()
    assert not observed._reports._under_way


def test_the_completion_of_a_call_follows_its_record(observed, monkeypatch):
    init()
    monkeypatch.setattr(collectives.CallbackPace, "due", lambda *_: False)
    works = [dist.all_reduce(torch.ones(n), async_op=True) for n in (1, 2)]
    before = [observed._to_record(call) for _, call in observed.rows]
    assert {(call.completed_ns, call.blocked_ns) for call in before} == {(None, None)}
    observed.rows.clear()
    works[0].wait()
    observed.positions()
    (row,) = observed.rows
    end = row[0](*row[1:])
    assert (end.seq, end.nbytes) == (0, 4)
    assert end.blocked_ns > 0
    if end.duration_ns is not None:  # it waited at once, and not for long
        assert end.completed_ns - before[0].issued_ns == end.duration_ns
    works[1].wait()
    observed.positions()
    observed.positions()
    assert len(observed.rows) == 2  # each once


def test_positions_have_the_oldest_open_call_and_the_newest(observed, monkeypatch):
    init()
    monkeypatch.setattr(collectives.CallbackPace, "due", lambda *_: False)
    dist.all_reduce(torch.ones(1))
    works = [dist.all_reduce(torch.ones(n), async_op=True) for n in (1, 2, 3)]
    told(observed)
    (place,) = observed.positions()
    assert (place.seq, place.done, place.oldest.seq, place.oldest.nbytes) == (3, False, 1, 4)
    assert place.oldest.where == place.where
    works[0].wait()
    assert observed.positions()[0].oldest.seq == 2
    works[1].wait()
    assert observed.positions()[0].oldest is None  # the newest is
    works[2].wait()
    (place,) = observed.positions()
    assert (place.oldest, place.done) == (None, True)


def test_of_unwatched_calls_the_first_of_the_step_is_the_oldest(observed, monkeypatch):
    init()
    step = [3]
    monkeypatch.setattr(observed._reports, "_step_of", lambda: step[0])
    monkeypatch.setattr(observed, "_step_of", lambda: step[0])
    monkeypatch.setattr(collectives.CallbackPace, "due", lambda *_: False)
    ops, name = torch.ops._c10d_functional, dist.group.WORLD.group_name
    for _ in range(3):
        ops.wait_tensor(ops.all_reduce(torch.ones(1), "sum", name))
    told(observed)
    (place,) = observed.positions()
    assert (place.seq, place.done, place.oldest.seq, place.oldest.step) == (2, False, 0, 3)
    step[0] = 4  # the step is over, and so is what was called in it
    assert observed.positions()[0].oldest is None
    ops.wait_tensor(ops.all_reduce(torch.ones(1), "sum", name))
    told(observed)
    assert observed.positions()[0].oldest is None
