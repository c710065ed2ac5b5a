"""The training options, on the command line and in a TOML file.

The trainer's own command and the demo share them. Precedence: command line, file, the model's
preset, `TrainConfig`'s defaults. Torch-free.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dpwatch.plan.setup import OPTIMIZERS, PRECISIONS

from .config import WRAPS, ConfigError, TrainConfig, require
from .registry import known_names

MODELS: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 128, "layers": 2, "heads": 4, "seq_len": 64, "token_chars": 1},
    "small": {"d_model": 256, "layers": 4, "heads": 8, "seq_len": 128, "token_chars": 1},
    "medium": {"d_model": 512, "layers": 8, "heads": 8, "seq_len": 256, "token_chars": 1},
    "gpt2": {"d_model": 768, "layers": 12, "heads": 12, "seq_len": 1024, "token_chars": 1},
    "demo": {"d_model": 64, "layers": 2, "heads": 4, "seq_len": 16, "token_chars": 2},
}
"""Sizes by name. `demo` predicts pairs of characters: as in a real language model, its logits and
embeddings outweigh the rest, so that both what DataParallel gathers and what sharding saves are
visible. `gpt2` has GPT-2 small's sizes, with a vocabulary of characters."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9,
          "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}  # fmt: skip


def size(text: str) -> int:
    """Bytes from `256MiB`, `2GB` or a plain number.

    Raises:
        ConfigError: It is not a size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"{text!r} is not a size; write one like 256MiB, 2GB or 1048576")
    return int(float(match[1]) * unit)


def _sized(text: str) -> int:
    """`size` with its own error message, where argparse's would say less."""
    try:
        return size(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _steps(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


@dataclasses.dataclass(kw_only=True, slots=True, frozen=True)
class Option:
    """One option: a field of `TrainConfig` with its external name."""

    field: str
    help: str
    flag: str = ""
    type: Any = str
    metavar: str | None = None
    choices: Sequence[str] | None = None
    switch: bool = False

    @property
    def name(self) -> str:
        """Its name on the command line, without the dashes."""
        return self.flag or self.field.replace("_", "-")


OPTIONS = (
    Option(field="steps", type=_steps, metavar="K", help="optimizer steps per run, or `none`"),
    Option(field="seed", type=int, metavar="I", help="fixes weights and batches (0)"),
    Option(field="batch_per_gpu", type=int, metavar="B", help="samples per device (4)"),
    Option(field="grad_accum", type=int, metavar="K", help="micro-batches per step (1)"),
    Option(field="seq_len", type=int, metavar="T", help="tokens per sample (64)"),
    Option(field="token_chars", type=int, metavar="C", help="characters per token, 1 to 3 (1)"),
    Option(field="d_model", type=int, metavar="D", help="width of the model (128)"),
    Option(field="layers", type=int, metavar="L", help="transformer blocks (2)"),
    Option(field="heads", type=int, metavar="H", help="attention heads (4)"),
    Option(field="optimizer", choices=OPTIMIZERS, help="sgd is without momentum (adam)"),
    Option(field="lr", type=float, metavar="R", help="learning rate (sgd 0.1, others 0.001)"),
    Option(field="precision", choices=PRECISIONS, help="of forward and backward (fp32)"),
    Option(
        field="activation_checkpointing",
        switch=True,
        help="keep only blocks' inputs and recompute in backward",
    ),
    Option(
        field="reshard_after_forward",
        switch=True,
        help="fsdp, hsdp: free gathered parameters after forward (on)",
    ),
    Option(field="cpu_offload", switch=True, help="fsdp, fsdp1: keep shards in host memory"),
    Option(field="wrap", choices=WRAPS, help="fsdp1: wrap by policy or by hand (auto)"),
    Option(
        field="gpu_mem_bytes",
        flag="gpu-mem",
        type=size,
        metavar="SIZE",
        help="memory of a virtual device, such as 256MiB",
    ),
    Option(field="overlap", switch=True, help="ddp: all-reduce during backward (on)"),
    Option(
        field="fault",
        metavar="KIND:RANK:MS",
        help="delay a rank each step, in data, forward, backward, optimizer or host",
    ),
    Option(field="label", metavar="TEXT", help="distinguishes the run from others of its strategy"),
    Option(field="save", metavar="DIR", help="write checkpoints to this directory"),
    Option(
        field="save_every", type=int, metavar="K", help="steps between checkpoints (one at the end)"
    ),
    Option(
        field="resume", metavar="DIR", help="resume from the newest checkpoint in this directory"
    ),
)
_BY_FIELD = {option.field: option for option in OPTIONS}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every option; one that is not given sets no attribute."""
    group = parser.add_argument_group("what to train")
    group.add_argument("--model", choices=MODELS, default=None, help="sizes by name")
    group.add_argument("--config", metavar="FILE", default=None, help="options from a TOML file")
    group.add_argument(
        "--mixed-precision",
        dest="precision",
        action="store_const",
        const="bf16-mixed",
        default=argparse.SUPPRESS,
        help="the same as --precision bf16-mixed",
    )
    for option in OPTIONS:
        facts: dict[str, Any] = {"dest": option.field, "default": argparse.SUPPRESS}
        if option.switch:
            facts["action"] = argparse.BooleanOptionalAction
        else:
            kind = _sized if option.type is size else option.type
            facts |= {"type": kind, "metavar": option.metavar, "choices": option.choices}
        group.add_argument(f"--{option.name}", help=option.help, **facts)


def configs_from(
    options: argparse.Namespace, names: Iterable[str], gpus: int, **defaults: Any
) -> list[TrainConfig]:
    """One configuration per strategy.

    Args:
        options: Result of a parser that `add_options` was applied to.
        names: Strategies.
        gpus: Devices.
        defaults: Overrides of `TrainConfig`'s defaults.

    Raises:
        ConfigError: A value is invalid, the file cannot be read, or an option fits no strategy.
    """
    names = list(names)
    told = _from_file(options.config) if options.config else {}
    model = options.model or told.pop("model", None)
    if model is not None and model not in MODELS:
        raise ConfigError(f"unknown model {model!r}; choose from: {', '.join(MODELS)}")
    given = {field: getattr(options, field) for field in _BY_FIELD if hasattr(options, field)}
    _check_used(given, names)
    fields = {**defaults, **MODELS.get(model, {}), **told, **given}
    return [TrainConfig(strategy=name, gpus=gpus, **fields) for name in names]


def _check_used(given: Iterable[str], names: Sequence[str]) -> None:
    """Rejects an option for particular strategies if none of them is named."""
    particular = {field for name in known_names() for field in require(name).options}
    for field in given:
        if field in particular and not any(field in require(name).options for name in names):
            takers = [name for name in known_names() if field in require(name).options]
            raise ConfigError(
                f"--{_BY_FIELD[field].name} is for {', '.join(takers)}; "
                f"{', '.join(names)} would ignore it"
            )


def _from_file(path: str) -> dict[str, Any]:
    """Fields from a TOML file, whose keys are the options' names."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    by_name = {option.name: option for option in OPTIONS}
    fields: dict[str, Any] = {}
    for key, value in table.items():
        option = by_name.get(key.replace("_", "-"))
        if key == "model":
            fields[key] = value
        elif option is None:
            known = ", ".join(["model", *by_name])
            raise ConfigError(f"{path}: unknown key {key!r}; known keys are: {known}")
        else:
            fields[option.field] = _value(option, value, f"{path}: {key}")
    return fields


def _value(option: Option, value: Any, where: str) -> Any:
    if option.type is size and isinstance(value, str):
        return size(value)
    if option.field == "steps" and value == "none":
        return None
    expected: dict[Any, type] = {float: float, str: str}
    kind = bool if option.switch else expected.get(option.type, int)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{where} = {value!r} should be of type {kind.__name__}")
    return value
