"""The walk: exact to the byte, and without running any of the script's code."""

import warnings
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor, Shard, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dpwatch.probe.memory import walk as memory_walk
from dpwatch.probe.memory.ddp import BucketSizes
from dpwatch.probe.memory.walk import Walk, gradient_of, modules_of, own_gradient_bytes, parts_of
from dpwatch.wire.messages import ByCategory

CPU = torch.device("cpu")
WIDTH = 32
LINEAR = (WIDTH * WIDTH + WIDTH) * 4


def build(optimizer=torch.optim.Adam, **options):
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH))
    return model, optimizer(model.parameters(), **options)


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(4, WIDTH)).square().mean().backward()
    optimizer.step()


def trained(optimizer=torch.optim.Adam, **options):
    model, optimizer = build(optimizer, **options)
    step(model, optimizer)
    return model, optimizer


PARAMS = 2 * LINEAR + 2 * WIDTH * 4
BUFFERS = 2 * WIDTH * 4 + 8


# -- to the byte -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "options", "state"),
    [
        (torch.optim.Adam, {}, 2 * PARAMS + 6 * 4),
        (torch.optim.Adam, {"amsgrad": True, "foreach": False}, 3 * PARAMS + 6 * 4),
        (torch.optim.SGD, {"lr": 0.1}, 0),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, PARAMS),
        (torch.optim.RMSprop, {}, PARAMS + 6 * 4),
    ],
)
def test_what_training_keeps_is_counted_to_the_byte(optimizer, options, state):
    model, optimizer = trained(optimizer, **options)
    found = Walk([optimizer], [model]).on(CPU)
    assert found == ByCategory(params=PARAMS, grads=PARAMS, optimizer=state, buffers=BUFFERS)


def test_views_and_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    model[1].weight = model[0].weight
    model.register_buffer("whole", torch.zeros(100))
    model.register_buffer("part", model.whole[:10])
    model.register_buffer("none", None)
    found = Walk([], [model, model[0]]).on(CPU)
    assert (found.params, found.buffers) == (LINEAR + WIDTH * 4, 400)


def test_a_wrapped_optimizer_is_read_through():
    model, inner = trained()

    class Sharded(torch.optim.Optimizer):  # ZeroRedundancyOptimizer's shape
        def __init__(self):
            super().__init__(model.parameters(), {})
            self.optim = inner

    assert Walk([Sharded()], [model]).on(CPU).optimizer == 2 * PARAMS + 6 * 4


def test_lists_in_an_optimizers_state_count():
    model, optimizer = build(torch.optim.LBFGS, max_iter=4, history_size=3)
    batch = torch.randn(4, WIDTH)

    def closure():
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    (state,) = optimizer.state.values()
    held = [state["d"], state["prev_flat_grad"], state["H_diag"], *state["old_dirs"],
            *state["old_stps"], *state["ro"]]  # fmt: skip
    tensors = [t for t in [*held, *state.get("al", [])] if isinstance(t, torch.Tensor)]
    distinct = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    assert Walk([optimizer], [model]).on(CPU).optimizer == sum(distinct.values())


@pytest.fixture
def group():
    """A group of two ranks of which only this one exists; its collectives do nothing."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    torch.distributed.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_of_a_dtensor_the_shard_counts():
    mesh, shard = init_device_mesh("cpu", (2,)), torch.randn(32, 8)
    model = nn.Module()
    model.weight = nn.Parameter(DTensor.from_local(shard, mesh, [Shard(0)]))
    assert model.weight.shape == (64, 8)
    assert Walk([], [model]).on(CPU).params == 32 * 8 * 4


@pytest.mark.usefixtures("group")
def test_ddps_bucket_sizes_are_read_once():
    class Function(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            raise AssertionError(f"seen: {function}")

    buckets, views = BucketSizes(), nn.Linear(4, 4)
    model = nn.Sequential(
        DistributedDataParallel(nn.Linear(WIDTH, WIDTH)),
        DistributedDataParallel(views, gradient_as_bucket_view=True),
    )
    inside, elsewhere = list(modules_of([model])), torch.device("meta")
    with Function():
        assert buckets.on(CPU, inside) == LINEAR
        assert buckets.on(elsewhere, inside) == 0
    model[0].logger = None
    assert buckets.on(CPU, inside) == LINEAR
    assert BucketSizes().on(CPU, inside) is None  # it does not tell


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripted_modules_are_walked_too():
    model = torch.jit.script(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)))
    found = Walk([], [model]).on(CPU)
    assert (found.params, found.buffers) == (LINEAR + 2 * WIDTH * 4, BUFFERS)


def test_only_gradients_with_their_own_storage_count_as_freed():
    model, optimizer = trained()
    bucket = torch.zeros(2, WIDTH)
    for at, norm in enumerate((model[1].weight, model[1].bias)):
        norm.grad = bucket[at]  # as DDP's `gradient_as_bucket_view` has it
    assert own_gradient_bytes([optimizer]) == {CPU: 2 * LINEAR}


# -- what can't be counted is unknown ----------------------------------------------------------


def test_without_a_parameter_on_a_device_all_of_it_is_unknown():
    model, optimizer = trained()
    assert Walk([optimizer], [model]).on(torch.device("meta")) == ByCategory()


def test_sparse_gradients_are_unknown_and_the_rest_is_not():
    model = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.tensor([1, 2])).sum().backward()
    found = Walk([optimizer], [model]).on(CPU)
    assert (found.params, found.grads, found.optimizer) == (160, None, 0)


def test_a_state_that_is_not_a_dict_is_unknown():
    model, inner = trained()

    class Elsewhere:
        param_groups = inner.param_groups

        @property
        def state(self):
            raise AssertionError("the script's code ran")

    assert Walk([Elsewhere()], [model]).on(CPU).optimizer is None


def test_fake_tensors_hold_nothing():
    with FakeTensorMode():
        model = nn.Linear(4, 4)
    assert Walk([], [model]).on(CPU) == ByCategory()


def test_in_a_fake_mode_real_tensors_count():
    model, optimizer = trained()
    with FakeTensorMode():
        assert Walk([optimizer], [model]).on(CPU).params == PARAMS


# -- nobody notices ----------------------------------------------------------------------------


def test_no_mode_sees_anything():
    model, optimizer = trained()
    seen = []

    class Function(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Function(), Dispatch():
        assert Walk([optimizer], [model]).on(CPU).grads == PARAMS
        assert own_gradient_bytes([optimizer]) == {CPU: PARAMS}
        assert seen == []
        model[0].weight.grad  # noqa: B018 - it does see this
        assert seen


class Loud(torch.Tensor):
    """A wrapper that raises on any use."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @property
    def grad(self):
        raise AssertionError("the script's code ran")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"the script's code ran: {function}")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"the script's code ran: {function}")


class LoudModule(nn.Module):
    """A module that overrides everything one could ask it."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(4, 4)
        self.register_buffer("wrapped", Loud(torch.zeros(100)))

    def _raises(self, *args, **kwargs):
        raise AssertionError("the script's code ran")

    parameters = named_parameters = buffers = named_buffers = modules = children = _raises
    __iter__ = __len__ = __eq__ = _raises
    __hash__ = object.__hash__


def test_no_code_of_the_scripts_runs():
    model = LoudModule()
    found = Walk([], [model]).on(CPU)
    assert (found.params, found.buffers) == ((16 + 4) * 4, 400)


def test_non_leaf_tensors_do_not_warn():
    model = nn.Module()
    leaf = torch.randn(4, requires_grad=True)
    model._parameters["computed"] = leaf * 2  # as functional code swaps them in
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gradient_of(model._parameters["computed"]) is None
        assert Walk([], [model]).on(CPU).params == 16


def test_a_lazy_copy_stays_lazy():
    source = torch.ones(1000)
    lazy = torch._lazy_clone(source)
    model = nn.Module()
    model.register_buffer("lazy", lazy)
    model.weight = nn.Parameter(torch.ones(1))
    assert Walk([], [model]).on(CPU).buffers == 4000
    assert torch._C._is_cow_tensor(lazy)


def test_tensors_can_still_be_swapped():
    """`torch.utils.swap_tensors`, which `Module.to` may use, refuses weakly referenced tensors."""
    model, optimizer = trained()
    Walk([optimizer], [model])
    own_gradient_bytes([optimizer])
    assert weakref.getweakrefcount(model[0].weight) == 0
    optimizer.zero_grad()
    torch.utils.swap_tensors(model[0].weight, nn.Parameter(torch.zeros(WIDTH, WIDTH)))
    assert not model[0].weight.any()


def test_nothing_is_kept_alive():
    model, optimizer = trained()
    alive = weakref.ref(model)
    walk = Walk([optimizer], [model])
    del walk, model, optimizer
    assert alive() is None


def test_nested_wrappers_are_unwrapped():
    inner = torch.ones(3)
    with torch._C.DisableTorchFunction():
        outer = Loud(Loud(inner))
    assert [part is inner for part in parts_of(outer)] == [True]


def test_a_wrapper_around_nothing_is_unknown():
    empty = Loud(torch.ones(3))
    del empty.inner
    assert memory_walk._Parts().of(empty) == (None,)
