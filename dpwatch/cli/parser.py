"""The parser: `dpwatch` alone watches; everything else is a subcommand."""

from __future__ import annotations

import argparse

import dpwatch
from dpwatch.argument_parser import OneLineParser
from dpwatch.cli import completion, config, demo, doctor, keys, run, ssh, stacks, watch

EXAMPLES = """\
examples:
  dpwatch                      watch every run on this host, or wait for one
  dpwatch --once --json        one snapshot of the live runs, as JSON
  dpwatch --last               show the last run again after it has ended
  dpwatch demo --gpus 4        train for real under dp, ddp, then fsdp, and compare them
  dpwatch run -- torchrun --nproc-per-node 4 train.py
                               run your own script, unchanged, with the probe in it
  dpwatch ssh node1 node2      watch the runs on other hosts
  dpwatch keys                 create the keys that join the hosts of one run
  dpwatch stacks               print the Python stack of every rank
  dpwatch config               print the viewer's settings, as a file to keep
  dpwatch doctor               check what is missing here, and how to fix it
  dpwatch completion bash      print a completion script; also zsh and fish
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
