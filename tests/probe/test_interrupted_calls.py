"""Exceptions that Python delivers in the midst of the probe's own code, as from a signal handler.

A trace function raises one at each instruction of the hooks in turn, which is more than a signal
can do: Python delivers those at calls and jumps only.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch
from torch import nn

import dpwatch.probe
from dpwatch.wire.messages import Step

OURS = os.path.dirname(os.path.abspath(dpwatch.probe.__file__)) + os.sep
MS = 1_000_000


class TimeUp(Exception):
    pass


class Interrupt:
    """Raises at the nth instruction of the probe that this thread executes."""

    def __init__(self, nth, kind):
        self.left = nth
        self.kind = kind
        self.raised = False

    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.local

    def local(self, frame, event, arg):
        if event != "opcode" or self.raised:
            return self.local
        self.left -= 1
        if self.left < 0:
            self.raised = True
            raise self.kind
        return self.local

    def run(self, work):
        """Returns: whether the exception came out of `work`, None if that ended before."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except self.kind:
            return True
        finally:
            sys.settrace(before)
        return False if self.raised else None


@pytest.fixture
def training(rig):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loader = torch.utils.data.DataLoader(torch.ones(4, 3), batch_size=2)

    def step():
        batch = next(iter(loader))
        loss = model(batch).mean()
        rig.clocks.run(30 * MS)
        loss.backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("kind", [TimeUp, KeyboardInterrupt])
@pytest.mark.parametrize("offset", [0, 6])
def test_interrupts_reach_the_script_and_leave_no_state(rig, training, kind, offset):
    steps = rig.probe.steps
    for _ in range(3):
        training()
    for nth in range(offset, 100_000, 13):
        interrupt = Interrupt(nth, kind)
        came_out = interrupt.run(training)
        torch.set_grad_enabled(True)  # which torch's own optimizers may leave off
        # Between a `with` and its end no signal comes, and a trace function does.
        torch._C._set_torch_function_state(torch._C._TorchFunctionState.ENABLED)
        if came_out is None:
            break
        assert came_out, f"swallowed at instruction {nth}"
        before = steps.step
        for _ in range(3):
            training()
        assert steps.step - before in (3, 4)
        assert not steps.main.in_module
    assert nth > 300
    assert not rig.probe.over
    last = rig.records(Step)[-1]
    assert None not in (last.data_ns, last.forward_ns, last.backward_ns, last.optimizer_ns)
    assert last.end_ns - last.start_ns == 30 * MS
