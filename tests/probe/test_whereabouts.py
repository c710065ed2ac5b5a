"""Where a thread is in the user's Python."""

import inspect
import subprocess
import sys
import threading

import pytest
import sympy
import torch

from dpwatch.probe.whereabouts import issuer, place, spelled, standing

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


def test_a_package_that_torch_is_made_with_is_not_where_the_user_is():
    """torch imports sympy when it must, which takes a second: a look then found sympy's line."""
    assert place(sympy.simplify.__code__)[1] is False
    assert place(pytest.approx.__code__)[1] is True
    assert place(inspect.signature.__code__)[1] is False


GENERATED = """
from dataclasses import dataclass
from dpwatch.probe.whereabouts import place

@dataclass
class Item:
    number: int

print(place(Item.__init__.__code__)[1])
"""


def test_generated_code_is_not_where_the_user_is(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(GENERATED)
    command = [sys.executable, str(script)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


def test_a_script_given_on_the_command_line_is_the_users():
    script = (
        "from dpwatch.probe.whereabouts import *\n\ndef f(): return issuer()\nprint(spelled(f()))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout == "<string>:3\n"
    piped = subprocess.run(
        [sys.executable], input=script, capture_output=True, text=True, check=True
    )
    assert piped.stdout == "<stdin>:3\n"
