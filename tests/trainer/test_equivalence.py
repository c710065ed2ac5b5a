"""Training is the same under every scheme: losses and parameters equal those of one device."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import pytest

from dpwatch.trainer import registry
from dpwatch.trainer.launch import launch

from .support import tiny, trained_alone

pytestmark = pytest.mark.dist
SCHEMES = [name for name in registry.known_names() if name != "single"]
STEPS = 20


@pytest.fixture
def trained(server, sabotage, tmp_path, monkeypatch):
    """Trains, and returns the losses of the global batch and each rank's final parameters."""

    def train(config):
        import torch

        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        monkeypatch.setenv("DPWATCH_TEST_OUT", str(out))
        failures = []
        code = launch([config], server=server, on_event=failures.append)
        assert code == 0, failures[-1]
        results = [torch.load(out / str(rank)) for rank in range(config.processes)]
        columns = zip(*(losses for losses, _ in results), strict=True)
        means = [sum(parts) / len(results) for parts in columns]
        return means, [parameters for _, parameters in results]

    return train


@pytest.fixture(scope="module")
def known():
    """Results of plain training, by configuration."""
    return {}


@pytest.fixture
def trained_once(trained, known):
    """Like `trained`, but reuses the result of another test."""

    def train(config):
        if config not in known:
            known[config] = trained(config)
        return known[config]

    return train


@lru_cache
def _alone(config):
    return trained_alone(config)


def expected_of(config):
    """One device's losses and parameters on the same global batches."""
    return _alone(
        dataclasses.replace(
            config, strategy="single", gpus=1, grad_accum=1, batch_per_gpu=config.batch
        )
    )


def fits(strategy, gpus):
    spec = registry.find(strategy)
    return gpus % spec.gpus_multiple == 0 and gpus <= (spec.max_gpus or gpus)


def each(counts, **changes):
    """Every strategy on that many devices, with the same global batch of 12 samples."""
    return [
        pytest.param(tiny(name, gpus=n, batch_per_gpu=12 // n, steps=STEPS, **changes),
                     id=f"{name}-{n}")
        for name in SCHEMES
        for n in counts
        if fits(name, n)
    ]  # fmt: skip


def assert_same(trained, config, *, loss=1e-5, parameter=2e-4):
    import torch

    losses, by_rank = trained(config)
    expected_losses, expected = expected_of(config)
    assert losses == pytest.approx(expected_losses, abs=loss)
    assert losses[-1] < losses[0] - 0.3
    for parameters in by_rank:
        assert parameters.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(parameters[name], value, atol=parameter, rtol=1e-4)


@pytest.mark.parametrize("config", each((2, 3, 4)))
def test_adam_on_so_many_devices(config, trained_once):
    assert_same(trained_once, config)


@pytest.mark.parametrize("config", each((2,), optimizer="sgd", lr=0.5, grad_accum=2))
def test_sgd_with_accumulated_gradients(config, trained):
    assert_same(trained, config, loss=1e-4, parameter=1e-3)


@pytest.mark.parametrize("config", each((2,), optimizer="adamw", activation_checkpointing=True))
def test_adamw_with_activation_checkpointing(config, trained):
    assert_same(trained, config)


@pytest.mark.parametrize("config", each((2,), precision="bf16-mixed"))
def test_bfloat16(config, trained):
    losses, _ = trained(config)
    expected, _ = expected_of(config)
    assert losses == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("config", each((2,)))
def test_resuming_from_a_checkpoint_is_bit_identical(config, trained, trained_once, tmp_path):
    import torch

    kept = str(tmp_path / "kept")
    straight, parameters = trained_once(config)
    half = dataclasses.replace(config, steps=STEPS // 2, save=kept)
    first, _ = trained(half)
    second, resumed = trained(dataclasses.replace(config, resume=kept))
    assert first + second == straight
    for mine, theirs in zip(resumed, parameters, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("config", each((2,)))
def test_the_probe_changes_nothing(config, trained, trained_once, monkeypatch, private_runtime):
    """Losses and parameters with and without it are bit-identical."""
    import torch

    losses, parameters = trained_once(config)
    assert list(private_runtime.iterdir()) == []
    monkeypatch.setenv("DPWATCH", "1")
    monkeypatch.setenv("DPWATCH_HUB_LINGER_S", "3")
    watched_losses, watched = trained(config)
    assert list(private_runtime.iterdir()) != []
    assert watched_losses == losses
    for mine, theirs in zip(watched, parameters, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
