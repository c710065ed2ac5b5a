"""The argument parser of every command: dpwatch's own, the trainer's and the demo's."""

from __future__ import annotations

import argparse
from typing import NoReturn, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `add_subparsers` returns; argparse has no public name for it."""


class OneLineParser(argparse.ArgumentParser):
    """Reports an error in one line instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")
