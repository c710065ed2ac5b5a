"""Training text that needs no download: Python's standard library, as characters.

The batch of a step depends only on the seed and the step. A rank takes its slice of the global
batch, so every strategy trains on the same samples in the same order.
"""

from __future__ import annotations

import itertools
import random
import sysconfig
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .config import CHARACTERS, TrainConfig

CORPUS_BYTES = 1_000_000
"""Maximum number of characters read."""

# Pure-Python modules of every version from 3.10 on, in sorted order.
_MODULES = """
    argparse ast bdb calendar codecs configparser contextlib copy csv dataclasses datetime difflib
    dis doctest enum fractions ftplib functools gettext gzip heapq imaplib inspect ipaddress locale
    mailbox mimetypes optparse os pdb pickle pickletools platform plistlib pprint random sched
    selectors shlex shutil smtplib socket ssl statistics string subprocess tarfile tempfile textwrap
    threading tokenize traceback typing unittest/case unittest/mock uuid weakref zipapp
"""


class CorpusError(RuntimeError):
    """There is no text to train on."""


@lru_cache(maxsize=1)
def corpus() -> Tensor:
    """The text as symbols below `CHARACTERS`, uint8, at most `CORPUS_BYTES` of them.

    Raises:
        CorpusError: This Python has no sources of its standard library.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = (folder / f"{name}.py" for name in _MODULES.split())
    text = b"\n".join(file.read_bytes() for file in files if file.is_file())[:CORPUS_BYTES]
    if len(text) < CORPUS_BYTES // 10:
        raise CorpusError(
            f"no standard library sources in {folder}; use a Python that ships its .py files"
        )
    symbols = bytearray(text.translate(_symbol_table()))
    return torch.frombuffer(symbols, dtype=torch.uint8)


def _symbol_table() -> bytes:
    """Newline is 0, space to tilde are 1 to 95, anything else is the last symbol."""
    table = bytearray([CHARACTERS - 1] * 256)
    table[ord("\n")] = 0
    for symbol, code in enumerate(range(ord(" "), ord("~") + 1), start=1):
        table[code] = symbol
    return bytes(table)


class Batches(Dataset[Tensor]):
    """Item k is a rank's part of step k's global batch: `[batch / ranks, seq_len + 1]`, int64."""

    def __init__(self, config: TrainConfig, *, rank: int, ranks: int) -> None:
        self._seed = config.seed
        self._batch = config.batch
        self._mine = slice(config.batch * rank // ranks, config.batch * (rank + 1) // ranks)
        self._token_chars = config.token_chars
        length = (config.seq_len + 1) * config.token_chars
        self._window = torch.arange(length).view(-1, config.token_chars)
        self._text = corpus()
        self._starts = len(self._text) - length
        if self._starts < 1:
            raise CorpusError(
                f"a sample of {config.seq_len} tokens is longer than the text "
                f"({len(self._text)}); reduce --seq-len"
            )

    def __getitem__(self, step: int) -> Tensor:
        draw = random.Random(f"{self._seed}/{step}")
        starts = [draw.randrange(self._starts) for _ in range(self._batch)][self._mine]
        characters = self._text[torch.tensor(starts)[:, None, None] + self._window].long()
        tokens = characters[..., 0]
        for place in range(1, self._token_chars):
            tokens = tokens * CHARACTERS + characters[..., place]
        return tokens


def loader(config: TrainConfig, *, rank: int, ranks: int, first: int = 0) -> DataLoader[Tensor]:
    """A rank's batches in order, from step `first` to the last of `config.steps`, or endless."""
    steps = itertools.count(first) if config.steps is None else range(first, config.steps)
    return DataLoader(
        Batches(config, rank=rank, ranks=ranks), batch_size=None, sampler=steps, num_workers=0
    )
