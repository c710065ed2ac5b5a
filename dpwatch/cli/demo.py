"""`dpwatch demo`: trains for real under each strategy in turn and shows it."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from dpwatch.argument_parser import Commands
from dpwatch.cli.errors import CommandError
from dpwatch.cli.watch import add_screen_options

EXAMPLES = """\
examples:
  dpwatch demo --gpus 4                                       dp, ddp, then fsdp, on screen
  dpwatch demo --gpus 4 --strategy dp,ddp --steps 30 --json   the same as one JSON object
  dpwatch demo --gpus 4 --find-max-batch                      which device runs out of memory first
  dpwatch demo --sweep-gpus 1,2,4,8 --strategy dp,ddp,zero3   device 0 by number of devices
  dpwatch demo --scenario straggler                           one of the scenarios below

scenarios:
{scenarios}

Without GPUs the devices are virtual: real training, real copies between devices, with each
device's bytes in host memory and its compute on this host's cores.
"""


def add(commands: Commands) -> None:
    """Adds the command."""
    from dpwatch.demo.scenarios import all_scenarios
    from dpwatch.trainer.options import add_options

    listed = "\n".join(f"  {each.name:<10} {each.summary}" for each in all_scenarios())
    parser = commands.add_parser(
        "demo",
        help="train under each strategy in turn and compare them",
        description="Trains the same small language model under each strategy and shows it.",
        epilog=EXAMPLES.format(scenarios=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="devices (default 4)")
    parser.add_argument(
        "--strategy",
        metavar="S,S…",
        help="strategies, in this order, or `all` (default dp,ddp,fsdp)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--find-max-batch",
        action="store_true",
        help="then search each strategy's largest batch per device that fits into --gpu-mem "
        "(24MiB); without a screen, only search",
    )
    what.add_argument(
        "--sweep-gpus", metavar="N,N…", help="no screen; device 0 by number of devices"
    )
    what.add_argument(
        "--scenario",
        choices=[each.name for each in all_scenarios()],
        help="runs that differ in one respect, listed below",
    )
    add_screen_options(parser, argparse.SUPPRESS)
    parser.add_argument(
        "--headless", action="store_true", help="no screen; print a table at the end"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="no screen; print the summary object")
    form.add_argument(
        "--markdown", action="store_true", help="no screen; the comparison as a Markdown table"
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trains and shows; returns the training's exit code."""
    from dpwatch.cli.demo_run import asked
    from dpwatch.trainer.config import ConfigError

    try:
        train = asked(options)
    except ConfigError as error:
        raise CommandError(str(error)) from None
    if find_spec("torch") is None:
        raise CommandError("the demo trains for real and needs torch: pip install torch numpy")
    return train()
