"""Who issued a collective, determined only by the frames it is issued under."""

import ast
import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dpwatch
from dpwatch.probe.collectives.issuers import MOST_ISSUERS, Issuers
from dpwatch.probe.collectives.ops import Op
from dpwatch.probe.stack.call_site import issuer
from dpwatch.probe.stack.frameworks import PURPOSES

SITE = "/opt/lib/site-packages"
CALL = "def {name}(then):\n    return then()\n"


def function(path, name):
    """A function of a package that only calls its argument."""
    made = {}
    exec(compile(CALL.format(name=name), path, "exec"), made)
    return made[name]


def issued_under(*frames):
    """What `issuer` returns under these frames, outermost first."""
    asked = issuer
    for path, name in reversed(frames):
        asked = functools.partial(function(f"{SITE}/{path}", name), asked)
    return asked()


LIGHTNING = "lightning/pytorch/loops/training_epoch_loop.py"
BROADCAST = ("lightning/pytorch/strategies/ddp.py", "broadcast")
SIGTERM = (LIGHTNING, "_broadcast_sigterm_tensor")
FILES = ("lightning/pytorch/callbacks/model_checkpoint.py", "setup")


@pytest.mark.parametrize(
    ("frames", "purpose"),
    [
        ([(LIGHTNING, "advance"), SIGTERM], "SIGTERM flag"),
        ([SIGTERM, ("torchmetrics/metric.py", "wrapped"), BROADCAST], "SIGTERM flag"),
        ([FILES, BROADCAST], "where checkpoints go"),
        ([FILES, (LIGHTNING, "advance"), BROADCAST], None),  # setup has called something else
        ([SIGTERM, ("somebody/callback.py", "on_batch")], None),  # called back: it is its own
        ([(LIGHTNING, "advance")], None),
    ],
)
def test_a_purpose_is_that_of_the_innermost_function_that_has_one(frames, purpose):
    place, owner = issued_under(*frames)
    assert place[0].co_filename == f"{SITE}/{frames[-1][0]}"
    assert (owner and owner[1].text) == purpose


def test_calls_from_the_users_own_line_are_the_users():
    _, owner = issued_under(SIGTERM, ("../mine/train.py", "training_step"))
    assert owner is None


def under_backward(frames, **call):
    """The issuers of a call observed under a package's frames and autograd's engine."""
    engine = Path(torch.__file__).parent / "autograd/graph.py"
    observer = Path(dpwatch.__file__).parent / "probe/collectives/observer.py"
    asked = functools.partial(function(str(observer), "kernel"), issuer)
    asked = functools.partial(function(str(engine), "_engine_run_backward"), asked)
    for path, name in reversed(frames):
        asked = functools.partial(function(f"{SITE}/{path}", name), asked)
    place, owner = asked()
    return counted(place=place, owner=owner, **call)


def counted(**call):
    issuers = Issuers()
    issuers.add(a_call(**call))
    return issuers.totals()


def a_call(*, first=True, step=0, nbytes=8, dtype=torch.int32, native=True, peer=None, **more):
    group = SimpleNamespace(is_first=first, name="default", size=2)
    op = Op(name=more.pop("op", "all_reduce"), payload=0, peer=peer)
    return SimpleNamespace(
        op=op, group=group, step=step, nbytes=nbytes, dtype=dtype, from_python=not native, **more
    )


BACKWARD = [("lightning/pytorch/core/module.py", "backward")]


def test_ddps_bitmap_has_a_purpose_and_its_gradients_have_none():
    (told,) = under_backward(BACKWARD)
    assert (told.framework, told.purpose) == ("DDP", "which parameters were used")
    assert under_backward(BACKWARD, dtype=torch.float32) == []
    assert under_backward(BACKWARD, op="broadcast") == []
    assert under_backward(BACKWARD, native=False) == []


def test_a_function_without_a_purpose_is_reported_by_name():
    place, owner = issued_under(("accelerate/utils/operations.py", "gather"))
    (told,) = counted(place=place, owner=owner)
    assert (told.framework, told.purpose) == ("accelerate", "")
    assert told.function == "accelerate.utils.operations.gather"


def test_the_bundled_trainer_is_not_a_framework():
    place, owner = issued_under(("dpwatch/trainer/loop.py", "train"))
    assert counted(place=place, owner=owner) == []


def test_calls_and_bytes_add_up_on_the_first_rank_of_a_group():
    place, owner = issued_under(SIGTERM)
    issuers = Issuers()
    for step in range(4):
        issuers.add(a_call(place=place, owner=owner, step=step))
        issuers.add(a_call(place=place, owner=owner, step=step, first=False))
        issuers.add(a_call(place=place, owner=owner, step=step, peer="dst"))
    issuers.add(a_call(place=None, owner=None, step=9))
    (told,) = issuers.totals()
    assert (told.calls, told.nbytes, told.first_step, told.last_step, told.steps) == (
        4, 32, 0, 3, 10
    )  # fmt: skip


def test_the_number_of_kinds_is_bounded():
    issuers = Issuers()
    for number in range(MOST_ISSUERS + 3):
        place, owner = issued_under(("accelerate/utils/operations.py", f"gather_{number}"))
        issuers.add(a_call(place=place, owner=owner))
    assert len(issuers.totals()) == MOST_ISSUERS


@pytest.mark.parametrize("key", PURPOSES, ids="/".join)
def test_every_function_with_a_purpose_is_in_its_package(key):
    """If a new version moves one it must be updated; until then only its name is reported."""
    path, name = key
    package = path.partition("/")[0]
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed")
    source = Path(found.origin).parents[1] / path
    defined = ast.walk(ast.parse(source.read_text()))
    assert name in {each.name for each in defined if isinstance(each, ast.FunctionDef)}
