"""The ledger of a process with several devices matches theory, device by device."""

from __future__ import annotations

from contextlib import closing

import msgspec
import pytest
import torch
import torch.distributed as dist

from dpwatch.plan.schemes import scheme
from dpwatch.probe.memory.ledger import Ledger
from dpwatch.probe.probe import Probe
from dpwatch.trainer.config import CHARACTERS
from dpwatch.trainer.data import loader
from dpwatch.trainer.footprint import setup
from dpwatch.trainer.model import build_model, next_token_loss
from dpwatch.trainer.rank_place import RankPlace
from dpwatch.trainer.registry import find
from dpwatch.trainer.strategies import build
from dpwatch.trainer.strategies.base import make_optimizer
from dpwatch.trainer.strategies.ddp_mp import FirstHalf, SecondHalf
from dpwatch.wire import codec
from dpwatch.wire.batching import unpack
from dpwatch.wire.messages import Collective, Memory, Step, Transfer

from .support import tiny

STEPS = 4
"""The ledger follows the second step and the third."""

SIZES = {"d_model": 48, "layers": 3, "heads": 3, "seq_len": 24, "steps": STEPS}


class Keeps:
    """A link that keeps the records."""

    hub_seen, patience_s = True, 0.0

    def __init__(self):
        self.records = []

    def open(self, run_id, local_rank):
        pass

    def send(self, frame):
        self.records.extend(unpack(codec.decode(frame).records))
        return True

    def ensure_hub(self, now_ns):
        pass

    def stack_request(self):
        return None

    def close(self):
        pass

    def of(self, kind, **facts):
        """Records of a type that have these values."""
        found = [record for record in self.records if isinstance(record, kind)]
        return [r for r in found if all(getattr(r, name) == facts[name] for name in facts)]


@pytest.fixture
def watched():
    """Trains in this process, as a group's only rank if needed, and returns what the probe sent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def train(config):
        cpu = (torch.device("cpu"),) * (config.devices // config.processes)
        place = RankPlace(rank=0, world_size=1, devices=cpu, virtual=True)
        link = Keeps()
        with Probe(strategy=config.strategy, devices=place.describe(config), link=link) as probe:
            if find(config.strategy).distributed:
                dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            try:
                with closing(build(config, place, probe)) as strategy:
                    for tokens in loader(config, rank=0, ranks=1):
                        strategy.step(tokens)
            finally:
                if dist.is_initialized():
                    dist.destroy_process_group()
        return link

    yield train
    torch.set_num_threads(threads)


CASES = [("ps-gpu0", 3), ("ps-cpu", 3), ("ps-sharded", 3), ("ps-sharded", 4), ("ddp-mp", 2)]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("strategy", "gpus"), CASES)
def test_what_each_device_holds_between_steps(strategy, gpus, optimizer, watched):
    config = tiny(strategy, gpus=gpus, optimizer=optimizer, grad_accum=2, **SIZES)
    link = watched(config)
    for step in (1, 2):
        held = [record.current for record in link.of(Memory, step=step)]
        assert [(h.params, h.grads, h.optimizer, h.buffers) for h in held] == [
            (h.params, h.grads, h.optimizer, h.buffers)
            for h in scheme(strategy).held(setup(config))
        ]


def peaks(link):
    return [record.peak for record in link.of(Memory, step=2)]


@pytest.mark.parametrize("strategy", ["ps-gpu0", "ps-cpu", "ps-sharded"])
def test_a_workers_peak_is_that_of_a_device_alone_with_its_samples(strategy, watched):
    config = tiny(strategy, gpus=3, batch_per_gpu=4, **SIZES)
    alone = tiny("single", gpus=1, batch_per_gpu=4, **SIZES)
    (expected,) = peaks(watched(alone))
    state = [held.optimizer for held in scheme(strategy).held(setup(config))]
    found = peaks(watched(config))
    for device in range(3):
        total = sum(msgspec.structs.astuple(found[device]))
        of_one = sum(msgspec.structs.astuple(expected)) - expected.optimizer
        assert total == pytest.approx(of_one + state[device], rel=0.01)
        assert found[device].activations == pytest.approx(expected.activations, rel=0.01)


def test_the_hosts_peak_is_one_bucket_beside_what_it_holds(watched):
    config = tiny("ps-cpu", gpus=4, **SIZES)
    whole = setup(config).param_bytes
    host = peaks(watched(config))[-1]
    assert (host.params, host.grads, host.temp) == (whole, whole, whole)
    assert host.activations == 0


def test_each_half_of_a_model_peaks_as_it_would_alone(watched):
    """The ledger on each half alone, with generated tensors at the cut."""
    config = tiny("ddp-mp", gpus=2, batch_per_gpu=4, **SIZES)
    found = peaks(watched(config))
    samples, width = config.batch, config.d_model
    crossing = torch.randn(samples, config.seq_len, width)
    tokens = torch.randint(CHARACTERS, (samples, config.seq_len))

    def first(half):
        torch.autograd.backward(half(tokens), crossing.clone())

    def second(half):
        torch.autograd.backward(next_token_loss(half(crossing.clone().requires_grad_()), tokens))

    # What the first half gives is the caller's here, who keeps it; at the cut it is let go.
    cases = ((FirstHalf, first, crossing.nbytes), (SecondHalf, second, 0))
    for peak, (kind, train, kept) in zip(found, cases, strict=True):
        records = []
        ledger = Ledger(records.append)
        half = kind(build_model(config))
        optimizer = make_optimizer(half.parameters(), config)
        for step in range(3):
            ledger.step_begin(step)
            optimizer.zero_grad()
            train(half)
            optimizer.step()
            ledger.step_end(step, [optimizer], [half])
        ledger.close()
        alone = Memory(*records[-1][1:]).peak
        total = sum(msgspec.structs.astuple(peak)) - peak.buffers
        assert total == pytest.approx(sum(msgspec.structs.astuple(alone)) - kept, rel=0.01)
        # Nor is its gradient there before backward.
        assert peak.activations == pytest.approx(alone.activations - 2 * kept, rel=0.01)


def test_the_host_has_phases_of_its_own(watched):
    link = watched(tiny("ps-cpu", gpus=2, **SIZES))
    (host,) = link.of(Step, step=2, device=2)
    assert (host.forward_ns, host.data_ns) == (None, None)
    assert host.backward_ns > 0
    assert host.optimizer_ns > 0


def test_two_devices_of_a_rank_take_turns(watched):
    link = watched(tiny("ddp-mp", gpus=2, grad_accum=2, **SIZES))
    first, second = link.of(Step, step=2)
    for step in (first, second):
        assert min(step.forward_ns, step.backward_ns, step.optimizer_ns) > 0
    busy = [s.forward_ns + s.backward_ns + s.optimizer_ns for s in (first, second)]
    assert sum(busy) <= first.end_ns - first.start_ns
    assert {c.device for c in link.of(Collective, step=2, op="all_reduce")} == {0, 1}


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
@pytest.mark.parametrize("grad_accum", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_activations_and_gradients_that_cross_the_cut(
    precision, grad_accum, checkpointing, watched
):
    config = tiny("ddp-mp", gpus=2, precision=precision, grad_accum=grad_accum,
                  activation_checkpointing=checkpointing, **SIZES)  # fmt: skip
    link = watched(config)
    for step in range(STEPS):
        crossed = [(t.kind, t.src, t.dst, t.nbytes) for t in link.of(Transfer, step=step)]
        planned = scheme("ddp-mp").copies(setup(config))
        assert sorted(crossed) == sorted((c.kind, c.src, c.dst, c.nbytes) for c in planned)
