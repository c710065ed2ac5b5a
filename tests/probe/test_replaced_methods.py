"""torch methods that the observer replaces look unchanged, and are restored."""

import inspect
import pickle

import pytest
import torch
import torch.distributed as dist

from dpwatch.probe.collectives import observer as collectives

METHODS = [
    (dist.ProcessGroup, "allreduce"),
    (dist.ProcessGroup, "send"),
    (dist.Work, "wait"),
    (dist.Work, "get_future"),
    (torch._C.Future, "wait"),
    (torch._C.Future, "then"),
]


def looks(owner, name):
    method = getattr(owner, name)
    names = [
        getattr(method, each) for each in ("__name__", "__qualname__", "__module__", "__doc__")
    ]
    return [*names, type(vars(owner)[name]), raised(inspect.signature, method), is_pickled(method)]


def raised(function, argument):
    with pytest.raises(ValueError, match="no signature found") as caught:
        function(argument)
    return str(caught.value).partition(" object at ")[0].partition(" at 0x")[0]


def is_pickled(method):
    try:
        pickle.dumps(method)
    except (TypeError, RuntimeError, pickle.PicklingError):
        return False
    return True


@pytest.mark.parametrize(("owner", "name"), METHODS)
def test_a_replaced_method_looks_as_it_did_and_is_put_back(owner, name):
    before, own = looks(owner, name), vars(owner)[name]
    observer = collectives.start(lambda row: None, lambda: 0)
    try:
        assert vars(owner)[name] is not own
        assert looks(owner, name) == before
    finally:
        observer.close()
    assert vars(owner)[name] is own


def test_what_somebody_has_put_on_top_stays():
    own = vars(dist.Work)["wait"]
    observer = collectives.start(lambda row: None, lambda: 0)
    ours = dist.Work.wait

    def theirs(work, *args):
        return ours(work, *args)

    dist.Work.wait = theirs
    try:
        observer.close()
        assert vars(dist.Work)["wait"] is theirs
    finally:
        dist.Work.wait = own
