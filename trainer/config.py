"""What to train and how: one frozen, validated object. Torch-free, so a viewer may import it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from dpwatch.plan.setup import OPTIMIZERS, PRECISIONS

from .fault import ON_DEVICES, parse_fault
from .registry import StrategySpec, find, known_names

MAX_SEED = 2**32 - 1
CHARACTERS = 97
"""Symbols of the text: newline, the 95 printable ASCII characters, and one for all others."""
MOST_CHARS = 3
"""A token of more characters would need a vocabulary of 88 million."""

LEARNING_RATES = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
WRAPS = ("auto", "manual")


class ConfigError(ValueError):
    """The configuration cannot be trained; the message is one line that says what to do."""


@dataclass(kw_only=True, slots=True, frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        strategy: A name from the registry (`registry.known_names()`).
        gpus: Number of devices; the world size, for a strategy with one process per device.
            `single` uses one device and trains the others' share of the batch too, so that losses
            are comparable.
        steps: Optimizer steps, None to train until stopped.
        seed: Determines the initial weights and every batch.
        batch_per_gpu: Samples of a micro-batch, per device of `gpus`.
        seq_len: Tokens predicted per sample.
        token_chars: Characters per token, 1 to 3: a vocabulary of 97, 9,409 or 912,673.
        d_model: Width of the model.
        layers: Transformer blocks.
        heads: Attention heads; must divide `d_model`.
        optimizer: `sgd` (without momentum), `adam` or `adamw`.
        lr: Learning rate, None for one that suits the optimizer.
        precision: `fp32`, or `bf16-mixed`: compute in bfloat16, everything kept in float32.
        grad_accum: Micro-batches of `batch_per_gpu` samples per device in a step.
        activation_checkpointing: Blocks keep only their inputs and recompute the rest in backward.
        reshard_after_forward: `fsdp`, `hsdp`: gathered parameters are freed after forward.
        cpu_offload: `fsdp`, `fsdp1`: shards live in host memory.
        wrap: `fsdp1`: `auto` by policy, or `manual`.
        save: Directory to write checkpoints to, None for none.
        save_every: Steps between checkpoints, None for one at the end.
        resume: Directory to load the newest checkpoint from, None to start from scratch.
        gpu_mem_bytes: Memory of a virtual device, None for no limit of its own.
        overlap: `ddp`: gradients are all-reduced during backward, not after it.
        fault: A delay to inject, `KIND:RANK:MS` (`fault.parse_fault`).
        label: A few words that distinguish this run from others of its strategy.

    Raises:
        ConfigError: A value is out of range, or values do not fit together.
    """

    strategy: str
    gpus: int = 4
    steps: int | None = 200
    seed: int = 0
    batch_per_gpu: int = 4
    seq_len: int = 64
    token_chars: int = 1
    d_model: int = 128
    layers: int = 2
    heads: int = 4
    optimizer: str = "adam"
    lr: float | None = None
    precision: str = "fp32"
    grad_accum: int = 1
    activation_checkpointing: bool = False
    reshard_after_forward: bool = True
    cpu_offload: bool = False
    wrap: str = "auto"
    save: str | None = None
    save_every: int | None = None
    resume: str | None = None
    gpu_mem_bytes: int | None = None
    overlap: bool = True
    fault: str | None = None
    label: str = ""

    def __post_init__(self) -> None:
        spec = require(self.strategy)
        for name in (
            "gpus",
            "batch_per_gpu",
            "seq_len",
            "d_model",
            "layers",
            "heads",
            "grad_accum",
        ):
            _at_least_one(name, getattr(self, name))
        for name in ("steps", "save_every", "gpu_mem_bytes"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        if not 1 <= self.token_chars <= MOST_CHARS:
            raise ConfigError(
                f"--token-chars {self.token_chars} is out of range; choose 1 to {MOST_CHARS}"
            )
        if self.d_model % self.heads:
            raise ConfigError(
                f"--d-model {self.d_model} does not divide into {self.heads} heads; "
                f"choose a multiple of {self.heads}"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"--seed {self.seed} is out of range; choose 0 to {MAX_SEED}")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise ConfigError(f"--lr {self.lr} is out of range; choose a number above 0")
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("wrap", self.wrap, WRAPS)
        if self.gpus % spec.gpus_multiple:
            raise ConfigError(
                f"{self.strategy} uses {spec.gpus_multiple} devices per rank, and {self.gpus} is "
                f"not a multiple of that; give --gpus {self.gpus + 1}"
            )

        if self.fault is not None:
            self._check_fault(self.fault)

    def _check_fault(self, text: str) -> None:
        try:
            fault = parse_fault(text)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        together = not require(self.strategy).distributed
        there = self.devices if together else self.processes
        if fault.rank >= there:
            raise ConfigError(
                f"--fault {text}: {self.strategy} has no rank {fault.rank}; "
                f"give one from 0 to {there - 1}"
            )
        if together and fault.rank and fault.kind not in ON_DEVICES:
            raise ConfigError(
                f"--fault {text}: {self.strategy} is one process, and only its first device "
                f"does {fault.kind}; give rank 0, or {' or '.join(ON_DEVICES)}"
            )

    @property
    def micro_batch(self) -> int:
        """Samples of a micro-batch over all devices."""
        return self.batch_per_gpu * self.gpus

    @property
    def batch(self) -> int:
        """Samples of a step over all devices: the global batch, the same for every strategy."""
        return self.micro_batch * self.grad_accum

    @property
    def vocabulary(self) -> int:
        """Number of tokens: every sequence of `token_chars` characters."""
        return int(CHARACTERS**self.token_chars)

    @property
    def learning_rate(self) -> float:
        """`lr`, or the optimizer's default if it is not given."""
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr

    @property
    def devices(self) -> int:
        """Devices that the strategy uses: `gpus`, or fewer if it cannot use that many."""
        most = require(self.strategy).max_gpus
        return self.gpus if most is None else min(self.gpus, most)

    @property
    def processes(self) -> int:
        """Ranks of the run, 1 if one process drives all devices."""
        spec = require(self.strategy)
        return self.devices // spec.gpus_multiple if spec.distributed else 1

    @property
    def title(self) -> str:
        """Human-readable name of the run."""
        model = f"character LM, {self.layers} layers of {self.d_model}"
        return f"{self.label} · {model}" if self.label else model


def parse_names(text: str) -> list[str]:
    """Strategies from a comma-separated list, each once, in order; `all` is every one.

    Raises:
        ConfigError: None is named, or one is unknown.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if "all" in names:
        return list(known_names())
    if not names:
        raise ConfigError(f"no strategy given; choose from: {', '.join(known_names())}, all")
    for name in names:
        require(name)
    return list(dict.fromkeys(names))


def require(name: str) -> StrategySpec:
    """The strategy of that name.

    Raises:
        ConfigError: There is none; the message lists the known ones.
    """
    spec = find(name)
    if spec is None:
        known = ", ".join(known_names())
        raise ConfigError(f"unknown strategy {name!r}; choose from: {known}")
    return spec


def new_run_id(strategy: str) -> str:
    """A unique, readable run id, such as `ddp-3f9a1c`."""
    return f"{strategy}-{secrets.token_hex(3)}"


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"unknown --{name} {value!r}; choose from: {', '.join(choices)}")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        option = "--" + name.replace("_", "-").replace("-bytes", "")
        raise ConfigError(f"{option} {value} is too small; give at least 1")
