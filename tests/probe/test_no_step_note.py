"""A probe that sees no step says why."""

import pytest
import torch
from torch import nn

from dpwatch.probe import probe as probe_module
from dpwatch.wire.messages import Hello


def note_of(rig):
    return rig.records(Hello)[-1].note


def only_forward():
    nn.Linear(3, 1)(torch.ones(2, 3))


def gradients_for_nothing():
    nn.Linear(3, 1)(torch.ones(2, 3)).sum().backward()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (lambda: None, "no torch.nn model was called with gradients on"),
        (only_forward, "no backward has run"),
        (gradients_for_nothing, "no torch.optim optimizer has stepped"),
    ],
)
def test_at_the_end_the_reason_is_reported(rig, script, said):
    script()
    assert said in note_of(rig)


def test_collectives_alone_are_not_training(rig):
    rig.collectives.issued = 7
    assert "collectives were issued" in note_of(rig)


def test_after_a_step_there_is_no_note(rig):
    model = nn.Linear(3, 1)
    model(torch.ones(2, 3)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert note_of(rig) == ""


def test_the_note_comes_during_the_run_but_not_too_early(rig, monkeypatch):
    assert rig.probe.note() == ""
    monkeypatch.setattr(probe_module, "NO_STEP_NOTE_NS", 0)
    assert "no backward has run" in rig.probe.note()
