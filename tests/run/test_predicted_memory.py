"""Predicted memory of other strategies, from a run's measured memory."""

import msgspec
import pytest

from dpwatch.run.derive.predicted_memory import elsewhere
from dpwatch.run.derive.summarize import summarize
from dpwatch.run.model.snapshot import Categories, Model
from tests.frames import ddp_run, dp_run, played

MIB = 1 << 20


def run_of(strategy, optimizer, frames=None):
    """A run with 12 MiB of parameters and this optimizer state per device, in MiB."""
    run = summarize(played(frames or ddp_run(steps=2, ranks=len(optimizer))))
    rows = [
        msgspec.structs.replace(
            row,
            memory=msgspec.structs.replace(
                row.memory,
                at_step_end=Categories(optimizer=None if held is None else held * MIB),
            ),
        )
        for row, held in zip(run.ranks, optimizer, strict=True)
    ]
    model = Model(3 * MIB, 12 * MIB)
    return msgspec.structs.replace(run, strategy=strategy, ranks=rows, model=model)


@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [("ddp", [24, 24, 24, 24]), ("zero1", [9, 5, 5, 5]), ("fsdp", [6, 6, 6, 6])],
)
def test_every_strategy_gives_the_same_prediction(strategy, optimizer):
    told = {each.strategy: each for each in elsewhere(run_of(strategy, optimizer))}
    assert [each.first / MIB for each in told.values()] == [48, 48, 30, 21, 12]
    assert (told["dp"].others / MIB, told["ddp"].others / MIB) == (24, 48)
    assert [name for name, each in told.items() if each.here] == [strategy]


def test_dp_is_predicted_from_device_0():
    told = elsewhere(run_of("dp", [24, 0, 0, 0], dp_run(steps=2)))
    assert told[0].here
    assert told[0].first == 48 * MIB


@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [("", [24, 24]), ("hsdp", [12, 12]), ("ddp", [24, None]), ("ddp", [0, 0]), ("single", [24])],
)
def test_nothing_is_predicted_from_unknown_sizes(strategy, optimizer):
    assert elsewhere(run_of(strategy, optimizer)) == []
