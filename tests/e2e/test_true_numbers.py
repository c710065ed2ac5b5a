"""Every scheme, trained for real: what the JSON says it holds and sends equals theory, exactly."""

import threading
from collections import Counter
from functools import lru_cache

import pytest

from dpwatch.plan.schemes import scheme
from dpwatch.trainer import registry
from dpwatch.trainer.config import TrainConfig
from dpwatch.trainer.footprint import setup
from dpwatch.trainer.forkserver import ForkServer
from dpwatch.trainer.launch import launch
from dpwatch.viewer.watcher import Watcher
from tests.hubs import has, until

pytestmark = pytest.mark.dist
STEPS = 14
SIZES = {"d_model": 48, "layers": 3, "heads": 3, "seq_len": 24, "batch_per_gpu": 2}
CATEGORIES = ("params", "grads", "optimizer", "activations", "buffers", "temp", "gathered")


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    """Trains a configuration, watched, and returns its run as JSON has it; each only once."""
    place = tmp_path_factory.mktemp("rt")
    with pytest.MonkeyPatch.context() as patch, ForkServer() as server:

        @lru_cache
        def measured(config):
            patch.setenv("DPWATCH_RUNTIME_DIR", str(place))
            patch.setenv("DPWATCH_HUB_LINGER_S", "1")
            run_id = f"{config.strategy}-{abs(hash(config)) % 10**8}"
            codes = []
            training = threading.Thread(
                target=lambda: codes.append(launch([config], run_ids=[run_id], server=server))
            )
            training.start()
            watcher = Watcher(run_id.__eq__)
            try:
                return until(watcher, has(run_id, state="finished", steps=config.steps)).runs[0].run
            finally:
                watcher.close()
                training.join()
                assert codes == [0]

        yield measured


def config_of(strategy, gpus, **changes):
    return TrainConfig(strategy=strategy, gpus=gpus, steps=STEPS, **{**SIZES, **changes})


EVERY = [
    pytest.param(config_of(spec.name, gpus), id=f"{spec.name}-{gpus}")
    for spec in registry.all_specs()
    for gpus in ((1,) if spec.max_gpus == 1 else (2, 3, 4))
    if gpus % spec.gpus_multiple == 0
]
SPECIAL = [
    pytest.param(config_of("fsdp", 4, reshard_after_forward=False), id="fsdp-kept"),
    pytest.param(config_of("dp", 2, precision="bf16-mixed"), id="dp-bf16"),
    pytest.param(config_of("zero3", 2, precision="bf16-mixed"), id="zero3-bf16"),
    pytest.param(config_of("fsdp1", 2, precision="bf16-mixed"), id="fsdp1-bf16"),
    pytest.param(config_of("fsdp", 2, precision="bf16-mixed"), id="fsdp-bf16"),
]
"""Options that change what is sent, and not what is held between steps."""

ACCUMULATING = [
    pytest.param(config_of(spec.name, 2, grad_accum=2), id=f"{spec.name}-accumulates")
    for spec in registry.all_specs()
    if spec.max_gpus != 1
]


def theory(config):
    return scheme(config.strategy), setup(config)


@pytest.mark.parametrize("config", EVERY + SPECIAL)
def test_bytes_held_by_each_device(config, measure):
    rows = measure(config).ranks
    plan, what = theory(config)
    held = [row.memory.at_step_end for row in rows]
    assert [(h.params, h.grads, h.optimizer, h.buffers) for h in held] == [
        (h.params, h.grads, h.optimizer, h.buffers) for h in plan.held(what)
    ]


@pytest.mark.parametrize("config", EVERY)
def test_parts_sum_to_the_whole(config, measure):
    run = measure(config)
    assert run.loss.last < run.loss.first
    for row in run.ranks:
        parts = [getattr(row.memory, name) for name in CATEGORIES]
        assert sum(parts) == row.memory.peak_bytes
        end = row.memory.at_step_end
        assert sum(getattr(end, name) for name in CATEGORIES) == row.memory.current_bytes
        if row.step_ms.p50 is not None:
            phases = row.phases_ms
            known = [phases.data, phases.h2d, phases.forward, phases.backward, phases.optimizer]
            total = sum(ms for ms in (*known, phases.other) if ms is not None)
            assert total == pytest.approx(row.step_ms.p50)


@pytest.mark.parametrize("config", EVERY + SPECIAL + ACCUMULATING)
def test_bytes_sent_by_collectives(config, measure):
    run = measure(config)
    plan, what = theory(config)
    calls = [c for c in plan.collectives(what) if c.ranks > 1 and c.nbytes]
    planned = Counter()
    for call in calls:
        planned[call.op, call.ranks] += call.nbytes
    found = {(c.op, c.ranks): c for c in run.collectives if c.ranks > 1 and c.bytes_per_step}
    assert {k: c.bytes_per_step for k, c in found.items()} == planned
    counts = {(c.op, c.ranks): c.count for c in calls if c.count is not None}
    assert {k: found[k].count_per_step for k in counts} == counts


@pytest.mark.parametrize("config", EVERY + SPECIAL + ACCUMULATING)
def test_bytes_sent_by_copies(config, measure):
    run = measure(config)
    plan, what = theory(config)
    names = [row.device for row in run.ranks if row.rank == 0]
    found = {(t.kind, t.src, t.dst): t.bytes_per_step for t in run.transfers if t.src in names}
    assert found == {
        (c.kind, names[c.src], names[c.dst]): c.nbytes for c in plan.copies(what) if c.nbytes
    }


@pytest.mark.parametrize("config", EVERY)
def test_bytes_sent_by_each_device(config, measure):
    """Copies and the ring's share of collectives, both ways, add up by device."""
    run = measure(config)
    plan, what = theory(config)
    for index, row in enumerate(r for r in run.ranks if r.rank == 0):
        sent = sum(c.nbytes for c in plan.copies(what) if c.src == index)
        received = sum(c.nbytes for c in plan.copies(what) if c.dst == index)
        share = sum(c.sent_bytes for c in plan.collectives(what) if c.device == index)
        # Each call's share of the ring is rounded down to a byte.
        slack = sum(c.count_per_step for c in run.collectives) + 1
        assert row.sent_bytes_per_step == pytest.approx(sent + share, abs=slack)
        assert row.received_bytes_per_step == pytest.approx(received + share, abs=slack)
