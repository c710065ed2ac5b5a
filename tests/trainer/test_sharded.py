"""Options of the sharding strategies: the same training with each; impossible ones refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.torch_version import TorchVersion

from dpwatch.trainer.config import ConfigError
from dpwatch.trainer.rank_place import RankPlace
from dpwatch.trainer.strategies import check

from .support import tiny
from .test_equivalence import STEPS, assert_same, trained

__all__ = ["trained"]  # a fixture

pytestmark = pytest.mark.dist


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("fsdp", {"reshard_after_forward": False}),
        ("fsdp", {"cpu_offload": True}),
        ("fsdp1", {"wrap": "manual"}),
    ],
    ids=["fsdp kept", "fsdp offloaded", "fsdp1 by hand"],
)
def test_every_option_trains_the_same(strategy, changes, trained):
    assert_same(trained, tiny(strategy, batch_per_gpu=6, steps=STEPS, layers=2, **changes))


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp1"])
def test_mixed_precision_resumes_bit_identically(strategy, trained, tmp_path):
    config = tiny(strategy, steps=6, precision="bf16-mixed", grad_accum=2)
    straight, _ = trained(config)
    kept = str(tmp_path / "kept")
    first, _ = trained(dataclasses.replace(config, steps=3, save=kept))
    second, _ = trained(dataclasses.replace(config, resume=kept))
    assert first + second == straight


def test_offload_without_an_accelerator_is_refused_in_one_line(trainer):
    code, _, errors = trainer("--strategy", "fsdp1", "--gpus", "2", "--cpu-offload").finish()
    assert code != 0
    (line,) = errors.strip().splitlines()
    assert "fsdp1 can't offload to the CPU without an accelerator" in line
    assert "use fsdp" in line


@pytest.mark.parametrize("strategy", ["fsdp", "hsdp"])
def test_a_torch_whose_fully_shard_errs_on_cpu_is_refused(strategy, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.7.0"))
    place = RankPlace(rank=0, world_size=2, devices=(torch.device("cpu"),), virtual=True)
    with pytest.raises(ConfigError, match=f"^{strategy} needs torch 2.13 .* fsdp1 or zero3$"):
        check(tiny(strategy, gpus=2), place)


def test_the_title_says_that_offload_is_simulated():
    cpu = torch.device("cpu")
    places = [
        RankPlace(rank=0, world_size=1, devices=(cpu,), virtual=virtual)
        for virtual in (True, False)
    ]
    config = tiny("fsdp", cpu_offload=True)
    assert [place.title(config) for place in places] == [
        f"{config.title}, CPU offload simulated",
        config.title,
    ]
    assert places[0].title(tiny("fsdp")) == config.title


def test_the_old_wrappers_warnings_are_not_printed(trainer):
    code, _, errors = trainer("--strategy", "fsdp1", "--gpus", "2", "--steps", "2").finish()
    assert (code, errors) == (0, "")
