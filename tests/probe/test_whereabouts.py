"""Where a thread is in the user's Python."""

import threading

import torch

from dpwatch.probe.whereabouts import issuer, spelled, standing

HERE = "tests/probe/test_whereabouts.py"


def test_the_issuer_is_the_line_that_called_through_torch():
    found = []

    class Layer(torch.nn.Module):
        def forward(self, x):
            found.append(issuer())
            return x

    Layer()(torch.ones(1))
    assert spelled(found[0]).startswith(f"{HERE}:")
    threading.Thread(target=lambda: found.append(issuer())).start()
    assert spelled(None) == ""


def test_a_waiting_thread_stands_still_at_the_line_that_waits():
    entered, go_on = threading.Event(), threading.Event()

    def waits_here():
        entered.set()
        go_on.wait()

    thread = threading.Thread(target=waits_here)
    thread.start()
    entered.wait()
    try:
        mark, lines, theirs = standing(thread.ident)
        while standing(thread.ident)[0] != mark:  # it was still on its way into `wait`
            mark, lines, theirs = standing(thread.ident)
        assert theirs.startswith(f"{HERE}:")
        assert theirs.endswith(" waits_here")
        assert theirs in lines
    finally:
        go_on.set()
        thread.join()
    assert standing(thread.ident) == (None, [], "")
