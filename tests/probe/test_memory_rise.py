"""Activations by the heap's rise, against the profiler's allocator events."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.checkpoint import checkpoint

from dpwatch.probe.memory.gauges import HostGauge
from dpwatch.probe.memory.rise import MODULE_BYTES, MOST_MICRO_BATCHES, Estimate, Rise
from dpwatch.probe.memory.walk import modules_of
from tests.allocator import made_and_kept

STEPS = 5
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Layers(nn.Module):
    """Embedding, transformer, head: its output is as large as what a layer saves."""

    def __init__(self, width=64, words=500, checkpointed=False):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, dropout=0.0)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, words)
        self.checkpointed = checkpointed

    def forward(self, tokens):
        hidden = self.embedding(tokens)
        if self.checkpointed:
            hidden = checkpoint(self.body, hidden, use_reentrant=False)
        else:
            hidden = self.body(hidden)
        return self.head(hidden).flatten(0, 1)


def language(**options):
    tokens = torch.randint(500, (8, 32))
    return Layers(**options), tokens, lambda out: F.cross_entropy(out, tokens.flatten())


def perceptron():
    model = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256), nn.ReLU())
    return model, torch.randn(256, 256), lambda out: out.square().mean()


def images():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return model, torch.randn(16, 3, 32, 32), lambda out: out.square().mean()


class Training:
    """Trains with a `Rise`, called as by the hooks.

    `drops`: nothing of a step outlives it. `late`: gradients are dropped after forward.
    """

    def __init__(self, make, *, drops=False, late=False, micro_batches=1):
        torch.manual_seed(0)
        self.model, self.batch, self.loss = make()
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.drops, self.late, self.micro_batches = drops, late, micro_batches
        self.gauges = {0: HostGauge()}
        self.rise = Rise(self.gauges)
        self.modules = len(list(modules_of([self.model])))
        self.out = None

    def step(self, number):
        if not self.late:
            self.optimizer.zero_grad()
        for micro in range(self.micro_batches):
            self.rise.before_forward()
            with record_function(f"forward {number}.{micro}"):
                pass
            out = self.model(self.batch)
            self.out = None if self.drops else out
            loss = self.loss(out)
            if self.late:
                self.optimizer.zero_grad()
            self.rise.before_backward()
            with record_function(f"backward {number}.{micro}"):
                pass
            del out
            loss.backward()
        self.optimizer.step()

    def run(self):
        """Estimates of the steps after the first."""
        gc.collect()
        gc.disable()  # what it frees in between is not this step's
        try:
            return [self.estimated(number) for number in range(STEPS)][1:]
        finally:
            gc.enable()

    def estimated(self, number):
        self.rise.begin([weakref.ref(self.optimizer)])
        self.step(number)
        if number:
            return self.rise.end(self.modules).get(0)
        self.rise = Rise(self.gauges, self.rise.largest())
        return None


def truth_of(make, **options):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        Training(make, **options).run()
    last = f"{STEPS - 1}.0"
    return made_and_kept(profiler, f"forward {last}", f"backward {last}")


CASES = [language, perceptron, images, lambda: language(checkpointed=True)]
OPTIONS = {"keeps outputs": {}, "drops them": {"drops": True}, "late zero_grad": {"late": True}}
NAMES = ["language", "perceptron", "images", "checkpointed"]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("make", CASES, ids=NAMES)
def test_the_true_value_is_within_the_error(make, options):
    *_, last = Training(make, **options).run()
    truth = truth_of(make, **options)
    assert abs(last.nbytes - truth) <= last.error


@pytest.mark.parametrize("make", CASES, ids=NAMES)
def test_if_a_script_keeps_nothing_only_bookkeeping_is_off(make):
    training = Training(make, drops=True)
    *_, last = training.run()
    truth = truth_of(make, drops=True)
    assert 0 <= last.nbytes - truth <= 0.01 * truth + MODULE_BYTES * training.modules


def test_the_largest_micro_batch_counts():
    *_, last = Training(perceptron, drops=True, micro_batches=3).run()
    assert last.nbytes == pytest.approx(truth_of(perceptron, drops=True), rel=0.03)


# -- by hand -----------------------------------------------------------------------------------


class Hand:
    """A gauge that a test sets."""

    device, source = CPU, "rss"
    held = 0

    def in_use(self):
        return self.held

    def totals(self):
        return None


def rises(rise, gauge, *steps):
    """Ends each step; the figures are those at forward's and backward's starts in turn."""
    found = []
    for step in steps:
        rise.begin([])
        for at, gauge.held in enumerate(step):
            (rise.before_backward if at % 2 else rise.before_forward)()
        found.append(rise.end(0).get(0))
    return found


def test_the_error_is_the_first_steps_excess_plus_bookkeeping():
    gauge = Hand()
    bookkeeping = MODULE_BYTES + 10
    (found,) = rises(Rise({0: gauge}, {CPU: 1500}), gauge, [100, 1100])
    assert found == Estimate(1000, 500 + bookkeeping)


def test_scattered_estimates_widen_the_error():
    gauge = Hand()
    *_, last = rises(Rise({0: gauge}, {CPU: 5000}), gauge, [0, 1000], [0, 4000], [0, 4500])
    assert last == Estimate(4500, 3500 + MODULE_BYTES + 45)


@pytest.mark.parametrize("first", [None, {}, {CPU: 20_000}])
def test_without_a_first_step_as_large_there_is_no_bound(first):
    gauge = Hand()
    (found,) = rises(Rise({0: gauge}, first), gauge, [0, 50_000])
    assert found == Estimate(50_000, None)


def test_an_impossible_estimate_is_dropped():
    gauge = Hand()
    rise = Rise({0: gauge}, {CPU: 10})
    falls, no_backward, no_forward = rises(rise, gauge, [500, 100], [100], [])
    assert falls is no_backward is no_forward is None


def test_a_forward_behind_another_adds_to_it():
    gauge, rise = Hand(), None
    rise = Rise({0: gauge})
    rise.begin([])
    for gauge.held in (100, 300):  # two models, one backward
        rise.before_forward()
    gauge.held = 700
    rise.before_backward()
    gauge.held = 9_000  # a second loss of the same forward
    rise.before_backward()
    assert rise.end(0)[0].nbytes == 600


def test_an_unreadable_gauge_gives_no_estimate():
    gauge = Hand()
    rise = Rise({0: gauge})
    rise.begin([])
    gauge.held = None
    rise.before_forward()
    gauge.held = 10
    rise.before_backward()
    assert rise.end(0) == {}


def test_only_some_of_many_micro_batches_are_measured():
    gauge = Hand()
    rise = Rise({0: gauge})
    rise.begin([])
    for at in range(100):
        gauge.held = 0
        rise.before_forward()
        gauge.held = at
        rise.before_backward()
    assert rise.end(0)[0].nbytes == MOST_MICRO_BATCHES - 1
