"""Which line of the user's Python a thread is at."""

import inspect
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import sympy
import torch

import dpwatch
from dpwatch.probe.stack.call_site import format_place, is_in, issuer, place, root_of, where_is

HERE = "tests/probe/test_call_site.py"


def test_the_issuer_is_the_line_that_called_through_torch():
    found = []

    class Layer(torch.nn.Module):
        def forward(self, x):
            found.append(issuer())
            return x

    Layer()(torch.ones(1))
    place, owner = found[0]
    assert format_place(place).startswith(f"{HERE}:")
    assert owner is None
    threading.Thread(target=lambda: found.append(issuer())).start()
    assert format_place(None) == ""


def test_a_waiting_thread_stays_at_the_line_that_waits():
    entered, go_on = threading.Event(), threading.Event()

    def waits_here():
        entered.set()
        go_on.wait()

    thread = threading.Thread(target=waits_here)
    thread.start()
    entered.wait()
    try:
        mark, lines, theirs = where_is(thread.ident)
        while where_is(thread.ident)[0] != mark:  # it was still on its way into `wait`
            mark, lines, theirs = where_is(thread.ident)
        assert theirs.startswith(f"{HERE}:")
        assert theirs.endswith(" waits_here")
        assert theirs in lines
    finally:
        go_on.set()
        thread.join()
    assert where_is(thread.ident) == (None, [], "")


def test_dependencies_of_torch_are_not_the_users_code():
    """torch imports sympy lazily, which takes a second: a sample then found sympy's line."""
    assert place(sympy.simplify.__code__)[1] is False
    assert place(pytest.approx.__code__)[1] is True
    assert place(inspect.signature.__code__)[1] is False


def code_of(part):
    """Code as if it were in a file of dpwatch."""
    path = os.path.join(os.path.dirname(dpwatch.__file__), part)
    return compile("pass", path, "exec")


@pytest.mark.parametrize(
    ("part", "users"),
    [
        ("hook/sitecustomize.py", False),
        ("probe/steps/torch_hooks.py", False),
        ("runtime/spawn.py", False),
        ("__init__.py", False),
        ("trainer/loop.py", True),  # a script like anybody's
    ],
)
def test_dpwatchs_own_code_is_not_the_users(part, users):
    assert place(code_of(part))[1] is users


def begin(pipe):
    threading.Thread(target=look, args=(threading.get_ident(), pipe), daemon=True).start()


def look(main, pipe):
    """Reports whether the worker is in its task whenever that changes."""
    while root_of(main) is not task.__code__:
        pass
    pipe.send("begun")
    while is_in(main, task.__code__):
        pass
    pipe.send("over")


def task(go_on):
    go_on.wait(60)


def test_a_pool_worker_is_in_its_task_until_that_ends():
    """Although a forked worker also has the frames of the process that forked it."""
    context = multiprocessing.get_context("fork")
    go_on = context.Manager().Event()
    ours, theirs = context.Pipe()
    with context.Pool(1, begin, (theirs,)) as pool:
        done = pool.apply_async(task, (go_on,))
        assert ours.poll(60)
        assert ours.recv() == "begun"
        go_on.set()
        done.get(60)
        assert ours.poll(60)
        assert ours.recv() == "over"
    assert root_of(threading.get_ident()) is not None
    assert root_of(-1) is None


GENERATED = """
from dataclasses import dataclass
from dpwatch.probe.stack.call_site import place

@dataclass
class Item:
    number: int

print(place(Item.__init__.__code__)[1])
"""


def test_generated_code_is_not_the_users_code(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(GENERATED)
    command = [sys.executable, str(script)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


def test_a_script_given_on_the_command_line_is_the_users():
    script = (
        "from dpwatch.probe.stack.call_site import *\n\n"
        "def f(): return issuer()[0]\nprint(format_place(f()))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout == "<string>:3\n"
    piped = subprocess.run(
        [sys.executable], input=script, capture_output=True, text=True, check=True
    )
    assert piped.stdout == "<stdin>:3\n"
