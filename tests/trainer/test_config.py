from __future__ import annotations

import subprocess
import sys

import pytest

from dpwatch.trainer import registry
from dpwatch.trainer.config import ConfigError, TrainConfig, new_run_id, parse_names
from dpwatch.trainer.footprint import check_fits, parameter_count, predicted_bytes
from dpwatch.units import size

from .support import tiny


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "zero9"}, "unknown strategy 'zero9'; choose from: single, dp, "),
        ({"gpus": 0}, "--gpus 0 is too small"),
        ({"gpus": -3}, "--gpus -3 is too small"),
        ({"steps": 0}, "--steps 0 is too small"),
        ({"batch_per_gpu": 0}, "--batch-per-gpu 0 is too small"),
        ({"seq_len": 0}, "--seq-len 0"),
        ({"layers": 0}, "--layers 0"),
        ({"d_model": 130}, "--d-model 130 does not divide into 4 heads; choose a multiple of 4"),
        ({"seed": -1}, "--seed -1 is out of range"),
        ({"lr": 0.0}, "--lr 0.0 is out of range"),
        ({"lr": float("nan")}, "--lr nan is out of range"),
        ({"gpu_mem_bytes": 0}, "--gpu-mem 0 is too small"),
        ({"token_chars": 4}, "--token-chars 4 is out of range; choose 1 to 3"),
    ],
)
def test_a_bad_value_is_one_line_with_what_to_do(changes, words):
    with pytest.raises(ConfigError) as error:
        TrainConfig(**{"strategy": "dp", **changes})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_names_are_parsed_once_each_in_order():
    assert parse_names(" ddp, dp,ddp ") == ["ddp", "dp"]
    assert parse_names("all") == list(registry.known_names())
    with pytest.raises(ConfigError, match="no strategy given"):
        parse_names(" , ")
    with pytest.raises(ConfigError, match="unknown strategy 'x'"):
        parse_names("dp,x")


def test_the_global_batch_is_the_same_for_every_strategy():
    configs = [TrainConfig(strategy=name, gpus=4) for name in ("single", "dp", "ddp")]
    assert [config.batch for config in configs] == [16, 16, 16]
    assert [config.devices for config in configs] == [1, 4, 4]
    assert [config.processes for config in configs] == [1, 1, 4]


def test_run_ids_are_readable_and_differ():
    assert new_run_id("ddp").startswith("ddp-")
    assert new_run_id("ddp") != new_run_id("ddp")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"d_model": 48, "layers": 3, "heads": 3, "seq_len": 10},
        {"layers": 1},
        {"token_chars": 2},
    ],
)
def test_the_formula_counts_the_real_models_parameters(changes):
    from dpwatch.trainer.model import build_model

    config = tiny("single", **changes)
    real = sum(parameter.numel() for parameter in build_model(config).parameters())
    assert parameter_count(config) == real


def test_a_model_that_does_not_fit_is_refused_with_both_figures():
    config = tiny("ddp", gpus=4, d_model=8192, layers=48, heads=64)
    with pytest.raises(ConfigError) as error:
        check_fits(config, available_bytes=16 << 30)
    assert size(predicted_bytes(config)) in str(error.value)
    assert "16.0 GiB" in str(error.value)
    assert "reduce --d-model" in str(error.value)


def test_a_model_that_just_fits_is_accepted():
    config = tiny("dp")
    check_fits(config, available_bytes=predicted_bytes(config))
    with pytest.raises(ConfigError):
        check_fits(config, available_bytes=predicted_bytes(config) - 1)


def test_ddp_needs_the_memory_of_every_copy():
    large = {"d_model": 1024, "layers": 4, "heads": 8, "batch_per_gpu": 1}
    one, four = (tiny("ddp", gpus=n, **large) for n in (1, 4))
    assert predicted_bytes(four) == pytest.approx(4 * predicted_bytes(one), rel=0.01)
    dp = tiny("dp", gpus=4, **large)
    assert predicted_bytes(dp) < predicted_bytes(four)


def test_every_strategys_file_documents_its_algorithm():
    from importlib import import_module

    for spec in registry.all_specs():
        module = import_module(f"dpwatch.trainer.strategies.{spec.module}")
        assert len(module.__doc__.splitlines()) > 5
        assert callable(module.build)


def test_the_launchers_side_needs_no_torch():
    code = (
        "import sys; import dpwatch.trainer.launch, dpwatch.trainer.__main__ as m;"
        "m.build_parser().format_help(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
