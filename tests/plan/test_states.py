"""Model state by strategy, against the ZeRO paper's table 1 and the plan's own theory."""

import pytest

from dpwatch.plan.schemes import scheme
from dpwatch.plan.setup import ParameterTensor, Setup
from dpwatch.plan.states import STRATEGIES, ModelState, bytes_per_device


@pytest.mark.parametrize(
    ("strategy", "gigabytes"), [("ddp", 120), ("zero1", 31.4), ("zero2", 16.6), ("fsdp", 1.88)]
)
def test_states_match_the_papers_table(strategy, gigabytes):
    """7.5 billion parameters on 64 devices, mixed precision and Adam."""
    psi = 7_500_000_000
    whole = ModelState(params=2 * psi, grads=2 * psi, optimizer=12 * psi)
    assert [
        round(each / 1e9, 2) for each in bytes_per_device(strategy, whole, 64)
    ] == pytest.approx([gigabytes] * 2, rel=0.005)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_agrees_with_the_theory_of_whole_tensors(strategy):
    tensors = tuple(ParameterTensor(shape=(64, 32), unit=unit) for unit in (0, 1, 2, 3))
    setup = Setup(tensors=tensors, devices=4, batch=4, seq_len=8, width=32, vocabulary=64)
    whole = ModelState(
        params=setup.param_bytes,
        grads=setup.param_bytes,
        optimizer=setup.optimizer_bytes(setup.elements, len(tensors)),
    )
    held = scheme(strategy).held(setup)
    first, others = bytes_per_device(strategy, whole, 4)
    assert first == pytest.approx(_bytes(held[0]), rel=0.01)
    if strategy != "dp":  # whose replicas are gone between steps
        assert others == pytest.approx(_bytes(held[1]), rel=0.01)


def _bytes(held):
    return held.params + held.grads + held.optimizer


def test_invalid_arguments_are_refused():
    whole = ModelState(params=1, grads=1, optimizer=1)
    with pytest.raises(ValueError, match="no figures"):
        bytes_per_device("magic", whole, 2)
    with pytest.raises(ValueError, match="a device"):
        bytes_per_device("ddp", whole, 0)
