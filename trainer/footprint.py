"""The size of a configuration, computed without torch: parameters, and bytes on this host."""

from __future__ import annotations

from pathlib import Path

from dpwatch.plan.schemes import scheme
from dpwatch.plan.setup import FLOAT_BYTES, ParameterTensor, Setup
from dpwatch.units import size

from .config import ConfigError, TrainConfig


def parameter_tensors(config: TrainConfig) -> tuple[ParameterTensor, ...]:
    """The model's parameters, in the order of `model.parameters()`."""
    d, v = config.d_model, config.vocabulary
    block = (
        *((d,), (d,)),  # norm_attention
        *((3 * d, d), (d, d), (d,)),  # attention: qkv without a bias, out
        *((d,), (d,)),  # norm_mlp
        *((4 * d, d), (4 * d,), (d, 4 * d), (d,)),  # mlp
    )
    shapes: list[tuple[tuple[int, ...], int]] = [((config.seq_len, d), 0), ((v, d), 0)]
    shapes += [(shape, unit) for unit in range(1, config.layers + 1) for shape in block]
    shapes += [((d,), 0), ((d,), 0), ((v, d), 0)]  # norm, head
    return tuple(ParameterTensor(shape=shape, unit=unit) for shape, unit in shapes)


def setup(config: TrainConfig) -> Setup:
    """The configuration as `dpwatch.plan` needs it."""
    return Setup(
        tensors=parameter_tensors(config),
        devices=config.devices,
        batch=config.micro_batch,
        seq_len=config.seq_len,
        width=config.d_model,
        vocabulary=config.vocabulary,
        optimizer=config.optimizer,
        precision=config.precision,
        grad_accum=config.grad_accum,
        reshard_after_forward=config.reshard_after_forward,
    )


def parameter_count(config: TrainConfig) -> int:
    """Number of elements in all of the model's parameters."""
    return setup(config).elements


def predicted_bytes(config: TrainConfig) -> int:
    """Estimates the bytes that training will hold on this host, over all devices.

    Parameters, gradients, optimizer state and the strategy's copies are exact to a few percent.
    Activations count what a block keeps for backward (about 16 tensors of width d and, for each
    head, its log-sum-exp) and three tensors the size of the logits. The processes themselves are
    not included.
    """
    pieces = scheme(config.strategy).peak_elements(setup(config))
    tokens = config.micro_batch * config.seq_len
    a_layer = 1 if config.activation_checkpointing else 16
    activations = tokens * (
        config.layers * (a_layer * config.d_model + config.heads) + 3 * config.vocabulary
    )
    return FLOAT_BYTES * (pieces + activations)


def available_host_bytes() -> int | None:
    """Memory this host can still provide (Linux's MemAvailable), None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def check_fits(config: TrainConfig, available_bytes: int | None = None) -> None:
    """Rejects a configuration that this host's memory cannot hold.

    For devices that live in host memory; CUDA devices have their own.

    Args:
        config: What to train.
        available_bytes: Available memory; None asks the host.

    Raises:
        ConfigError: It needs more than is available; the message has both figures.
    """
    available = available_host_bytes() if available_bytes is None else available_bytes
    needed = predicted_bytes(config)
    if available is None or needed <= available:
        return
    raise ConfigError(
        f"{config.strategy} on {config.gpus} devices would need about {size(needed)} of memory "
        f"({parameter_count(config) / 1e6:,.1f} M parameters), and this host has "
        f"{size(available)}; reduce --d-model, --layers, --batch-per-gpu or --gpus"
    )
