"""Options on the command line and in a file."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from dpwatch.trainer.config import ConfigError, TrainConfig
from dpwatch.trainer.options import MODELS, OPTIONS, add_options, configs_from, size


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(arguments)


def one(*arguments, strategy="ddp"):
    (config,) = configs_from(parsed(*arguments), [strategy], 4)
    return config


def test_every_field_has_an_option():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert fields - {option.field for option in OPTIONS} == {"strategy", "gpus"}


def test_nothing_given_is_the_default():
    assert one() == TrainConfig(strategy="ddp")


def test_options_set_the_configuration():
    config = one(
        *("--model", "small", "--steps", "none", "--optimizer", "sgd", "--grad-accum", "2"),
        *("--mixed-precision", "--activation-checkpointing", "--gpu-mem", "1.5GiB", "--lr", "1e-2"),
    )
    assert config.steps is None
    assert config.gpu_mem_bytes == 3 << 29
    assert config.precision == "bf16-mixed"
    assert config.grad_accum == 2


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("256MiB", 256 << 20), ("2GB", 2 * 10**9), ("1048576", 1 << 20), ("1.5 kib", 1536)],
)
def test_sizes_are_parsed(text, nbytes):
    assert size(text) == nbytes


@pytest.mark.parametrize("text", ["", "MiB", "12 parsecs", "-1GB", "1e3"])
def test_invalid_sizes_are_refused(text):
    with pytest.raises(ConfigError, match="is not a size; write one like 256MiB"):
        size(text)


def test_a_file_sets_what_the_command_line_does_not(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'model = "small"\nsteps = 30\ngrad-accum = 2\nlr = 1\ngpu_mem = "64MiB"\n'
        'activation-checkpointing = true\noptimizer = "sgd"\n'
    )
    config = one("--config", str(file), "--steps", "5", "--layers", "3")
    assert (config.steps, config.layers) == (5, 3)
    assert config.d_model == MODELS["small"]["d_model"]
    assert (config.grad_accum, config.lr, config.gpu_mem_bytes) == (2, 1.0, 64 << 20)
    assert config.activation_checkpointing
    assert config.optimizer == "sgd"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz = 3", "unknown key 'stepz'; known keys are: model, steps,"),
        ("steps = '3'", "steps = '3' should be of type int"),
        ("steps = true", "steps = True should be of type int"),
        ("activation_checkpointing = 1", "should be of type bool"),
        ("steps = ", "is not valid TOML"),
        ("model = 'huge'", "unknown model 'huge'; choose from: tiny, small"),
        ("gpu-mem = 'much'", "'much' is not a size"),
        ("optimizer = 'lion'", "unknown --optimizer 'lion'; choose from: sgd, adam, adamw"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(text, words, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        one("--config", str(file))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(ConfigError, match="can't read"):
        one("--config", str(tmp_path / "none.toml"))


def test_presets_are_models_that_can_be_trained():
    for name in MODELS:
        assert one("--model", name).d_model == MODELS[name]["d_model"]
