"""`python -m dpwatch.trainer`: trains on this host, or as one rank under torchrun."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

import dpwatch
from dpwatch.argument_parser import OneLineParser

from .config import ConfigError, parse_names, require
from .console import print_error, print_event, print_progress
from .launch import StopSwitch, launch
from .messages import Failed, Progress, RankMessage
from .options import add_options, configs_from
from .registry import all_specs
from .resume import find_checkpoint

USAGE = 2
_BROKEN_PIPE = 128 + 13

_EXAMPLES = """\
examples:
  python -m dpwatch.trainer --strategy dp,ddp --gpus 4      one after the other, on the same batches
  torchrun --nproc-per-node 4 -m dpwatch.trainer --strategy ddp

strategies:
"""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    listed = "\n".join(f"  {spec.name:<10} {spec.summary}" for spec in all_specs())
    parser = OneLineParser(
        prog="dpwatch.trainer",
        description="Trains a small language model for real, on GPUs or on virtual devices.",
        epilog=_EXAMPLES + listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dpwatch {dpwatch.__version__}")
    add = parser.add_argument
    add("--strategy", default="dp,ddp", metavar="S,S…", help="strategies, in this order (dp,ddp)")
    add("--gpus", type=int, metavar="N", help="devices (4; under torchrun its ranks)")
    add("--run-id", default="", metavar="ID,ID…", help="the runs' ids, one a strategy")
    add_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = build_parser().parse_args(arguments)
    try:
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            return _as_rank(options)
        return _launch(options)
    except ConfigError as error:
        print_error(str(error))
        return USAGE
    except BrokenPipeError:  # the reader of our progress has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def _launch(options: argparse.Namespace) -> int:
    names = parse_names(options.strategy)
    gpus = 4 if options.gpus is None else options.gpus
    configs = configs_from(options, names, gpus)
    run_ids = [part.strip() for part in options.run_id.split(",") if part.strip()]
    if run_ids and len(run_ids) != len(names):
        raise ConfigError(
            f"--run-id has {len(run_ids)} ids for {len(names)} strategies; give one for each"
        )
    stop = StopSwitch()
    with stop.on_signals():
        return launch(configs, run_ids=run_ids, on_event=print_event, stop=stop)


def _as_rank(options: argparse.Namespace) -> int:
    """Trains as one of the ranks that torchrun started."""
    names = parse_names(options.strategy)
    world_size = int(os.environ["WORLD_SIZE"])
    if len(names) > 1:
        raise ConfigError("torchrun starts one run; name one strategy, such as --strategy ddp")
    spec = require(names[0])
    distributed, devices = spec.distributed, world_size * spec.gpus_multiple
    if not distributed and world_size > 1:
        raise ConfigError(
            f"{names[0]} uses one process, but torchrun started {world_size}; "
            f"run python -m dpwatch.trainer --strategy {names[0]} --gpus {world_size}"
        )
    gpus = options.gpus
    if distributed and gpus not in (None, devices):
        raise ConfigError(
            f"--gpus {gpus} contradicts torchrun's {world_size} ranks; "
            f"leave --gpus out, or give --nproc-per-node {max(1, gpus // spec.gpus_multiple)}"
        )
    (config,) = configs_from(options, names, devices if distributed else gpus or 4)
    if options.run_id:
        os.environ["DPWATCH_RUN_ID"] = options.run_id
    os.environ.setdefault("DPWATCH_OUTPUT", "1")
    if find_spec("torch") is None:
        raise ConfigError("training needs torch: pip install torch numpy")
    find_checkpoint(config)
    from .worker import run_under_torchrun

    def tell(message: RankMessage) -> None:
        if isinstance(message, Progress):
            print_progress(config, message)
        elif isinstance(message, Failed):
            print_error(f"rank {os.environ['RANK']}: {message.reason}", message.trace)

    return run_under_torchrun(config, tell)


def _leave(code: int) -> NoReturn:
    """Exits without teardown: torch threads that end in Python's shutdown may abort the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if "RANK" in os.environ:
        _leave(main())
    sys.exit(main())
