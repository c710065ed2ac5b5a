"""`dpwatch demo --find-max-batch`: each strategy's largest batch, and the device that limits it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dpwatch.cli.errors import FINE, CommandError
from dpwatch.cli.markdown import table as markdown_table
from dpwatch.cli.output import columns, formatted
from dpwatch.demo.max_batch import (
    MaxBatches,
    News,
    SearchError,
    StoppedError,
    Tried,
    find_all,
)
from dpwatch.run.model.largest_batch import LargestBatch
from dpwatch.trainer.config import TrainConfig
from dpwatch.units import UNKNOWN, mebibytes

FAILED = 1

_TITLES = (
    *("strategy", "batch per device", "global batch", "runs out first"),
    *("its peak MiB", "others' peak MiB", "others' room"),
)


def run(configs: Sequence[TrainConfig], *, as_json: bool, as_markdown: bool) -> int:
    """Searches, prints every try on stderr, and prints the result."""

    def tell(news: News) -> None:
        if isinstance(news, Tried):
            print(news.said, file=sys.stderr)

    try:
        found = find_all(list(configs), tell)
    except SearchError as error:
        raise CommandError(str(error), FAILED) from None
    except StoppedError as error:
        raise CommandError("stopped before the search finished", 128 + error.signum) from None
    print(formatted(found) if as_json else markdown(found) if as_markdown else text(found))
    return FINE


def text(found: MaxBatches) -> str:
    """A table for the terminal."""
    head = f"{found.title} on {found.gpus} devices of {mebibytes(found.gpu_mem_bytes)} MiB each"
    return "\n".join([head, "", *columns(_TITLES, [_row(each) for each in found.strategies])])


def markdown(found: MaxBatches) -> str:
    """The same as a Markdown table."""
    return "\n".join(markdown_table(_TITLES, [_row(each) for each in found.strategies]))


def _row(found: LargestBatch) -> list[str]:
    """Figures of the device that runs out first, and of the others at the same batch."""
    limiting, other = found.limiting, found.fullest_other
    fill = other.fill if other else None
    return [
        found.strategy,
        str(found.batch_per_gpu) if found.batch_per_gpu else "none fits",
        str(found.global_batch),
        found.who,
        mebibytes(limiting.peak_bytes if limiting else None),
        mebibytes(other.peak_bytes if other else None),
        UNKNOWN if fill is None else f"{1 - fill:.0%}",
    ]
