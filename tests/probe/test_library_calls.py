"""Which library call a thread is in; the calls are real."""

import io
import pdb
import sys
import threading

import pytest
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.utils.data import DataLoader, Dataset

from dpwatch.probe.stack.library_calls import (
    NO_CALL,
    GroupMembership,
    _prompt,
    library_call_in_traceback,
    library_call_of,
    rank_given_to_init,
)
from dpwatch.wire.messages import GroupMembers, Meeting

DEADLINE_S = 60


class Blocked:
    """A thread that stays where it is until it is released."""

    def __init__(self, call):
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=call, args=(self.wait,), daemon=True)
        self.thread.start()
        assert self.entered.wait(DEADLINE_S)

    def wait(self, *_, **__):
        self.entered.set()
        self.go_on.wait(DEADLINE_S)

    @property
    def ident(self):
        return self.thread.ident

    def close(self):
        self.go_on.set()
        self.thread.join(DEADLINE_S)


@pytest.fixture
def blocked():
    made = []

    def start(call):
        made.append(Blocked(call))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_a_thread_in_init_process_group_is_found_with_rank_and_size(blocked, monkeypatch):
    def joins(wait):
        def rendezvous(*args, **kwargs):
            wait()
            raise RuntimeError("nobody came")

        monkeypatch.setattr(distributed_c10d, "rendezvous", rendezvous)
        with pytest.raises(RuntimeError, match="nobody came"):
            dist.init_process_group("gloo", init_method="tcp://x:1", rank=1, world_size=3)

    it = blocked(joins)
    assert library_call_of(it.ident) == (
        "init_process_group",
        Meeting("init_process_group", 3),
        None,
    )
    assert rank_given_to_init(it.ident) == (1, 3)
    it.close()
    assert (library_call_of(it.ident), rank_given_to_init(it.ident)) == (NO_CALL, None)


def test_an_exception_shows_which_group_was_being_created(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("Connection reset by peer")

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert GroupMembership().now() == []
        dist.new_group([0])
        assert [(g.members, bool(g.group)) for g in GroupMembership().now()] == [([0], True)]
        monkeypatch.setattr(distributed_c10d, "_new_process_group_helper", broken)
        with pytest.raises(RuntimeError) as caught:
            dist.new_group([0])
        found = library_call_in_traceback(caught.value.__traceback__)
        assert found.call == "new_group"
        assert (found.meeting.ranks, found.meeting.members) == (1, [0])
        assert found.meeting.group  # c10d's own name, which tells it from the one before
        told = GroupMembers("1", [0])
        assert found.meeting.group != told.group
    finally:
        dist.destroy_process_group()


def test_a_thread_that_waits_for_its_data_loader_is_found(blocked):
    def loads(wait):
        class Slow(Dataset):
            def __len__(self):
                return 1

            def __getitem__(self, index):
                wait()
                return index

        next(iter(DataLoader(Slow())))

    assert library_call_of(blocked(loads).ident).call == "DataLoader"


def in_file(file, function, body):
    """A function in which a thread waits, as if it were defined in that file."""
    told = {}
    exec(compile(f"def {function}(wait): {body}", file, "exec"), told)
    return told[function]


def test_a_kernel_that_waits_for_its_next_cell_is_at_a_prompt(blocked):
    kernel = in_file("/lib/ipykernel/kernelapp.py", "start", "wait()")
    assert library_call_of(blocked(kernel).ident).call == "prompt"
    cell = in_file("/lib/IPython/core/interactiveshell.py", "run_code", "wait()")
    runs = in_file("/lib/ipykernel/kernelapp.py", "start", "wait[0](wait[1])")
    assert library_call_of(blocked(lambda wait: runs((cell, wait))).ident) == NO_CALL


def test_a_debugger_prompt_is_recognized(blocked):
    def debugs(wait):
        class Person(io.StringIO):
            def readline(self):
                wait()
                return "continue\n"

        pdb.Pdb(stdin=Person(), stdout=io.StringIO(), nosigint=True).set_trace()

    assert library_call_of(blocked(debugs).ident).call == "pdb"


def test_pythons_own_prompt_is_recognized_without_a_frame(monkeypatch):
    main = threading.main_thread().ident
    assert _prompt(main, []) == ""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert _prompt(main, []) == "prompt"
    assert _prompt(main + 1, []) == ""


def test_outside_known_calls_nothing_is_found(blocked):
    it = blocked(lambda wait: wait())
    assert (library_call_of(it.ident), rank_given_to_init(it.ident)) == (NO_CALL, None)
