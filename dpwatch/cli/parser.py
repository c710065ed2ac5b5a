"""The parser: `dpwatch` itself watches; everything else is a subcommand."""

from __future__ import annotations

import argparse

import dpwatch
from dpwatch.argument_parser import OneLineParser
from dpwatch.cli import completion, config, demo, doctor, keys, run, ssh, stacks, watch

EXAMPLES = """\
examples:
  dpwatch                      watch every run on this host; waits for one
  dpwatch --once --json        what the live runs look like now, as JSON
  dpwatch --last               the last run once more, when it is over
  dpwatch demo --gpus 4        train for real under dp, ddp, then fsdp, and compare them
  dpwatch run -- torchrun --nproc-per-node 4 train.py
                               run a script of your own, unchanged, with the probe in it
  dpwatch ssh node1 node2      watch the runs on other hosts
  dpwatch keys                 keys that join the hosts of one run
  dpwatch stacks               where every rank's Python stands, as text
  dpwatch config               the screen's settings, and a file to keep them in
  dpwatch doctor               what is missing here, and what to do about it
  dpwatch completion bash      what makes Tab complete all of this; zsh and fish too
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser: argparse.ArgumentParser = OneLineParser(
        prog="dpwatch",
        description="See, live, what a distributed PyTorch training run is doing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dpwatch {dpwatch.__version__}")
    watch.describe(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    demo.add(commands)
    run.add(commands)
    ssh.add(commands)
    keys.add(commands)
    stacks.add(commands)
    doctor.add(commands)
    config.add(commands)
    completion.add(commands, parser)
    return parser
