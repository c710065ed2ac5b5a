"""The real thing in a real terminal: tmux, keys, and what stands on the screen."""

import os
import signal

import pytest

from tests.processes import eventually, nothing_but_the_last, processes_with, start
from tests.terminals import MISSING, Terminal

pytestmark = [
    pytest.mark.dist,
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
]


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def open_one(width, height, *command):
        folder = tmp_path / str(len(opened))
        folder.mkdir()
        opened.append(Terminal(folder, width, height, *command))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def test_the_demo_from_the_first_step_to_compare(terminal, private_runtime):
    # Steps enough for a person, and for this test, to see it running.
    screen = terminal(160, 45, "demo", "--gpus", "2", "--steps", "60")
    screen.until("vgpu:0", "vgpu:1", "virtual devices", "running")
    screen.until("fsdp", "finished", "fsdp shards: each device keeps")  # by itself
    screen.keys("7")
    screen.until("Memory at the peak", "ddp", "fsdp", "1.00×")
    screen.keys("8")
    screen.until("master imbalance")
    screen.keys("?")
    screen.until("Keys in Alerts", "Keys everywhere")
    screen.keys("q")
    left = screen.until("EXIT=0", "echo")
    assert "it runs out of memory first" in left
    assert "ddp and fsdp load all devices equally." in left
    assert "fsdp shards: each device keeps" in left
    eventually(lambda: not _others(private_runtime), "every process gone")
    assert nothing_but_the_last(private_runtime)


SEARCH = (
    *("demo", "--gpus", "2", "--strategy", "dp,ddp", "--steps", "12", "--find-max-batch"),
    *("--gpu-mem", "600KiB", "--d-model", "16", "--heads", "2", "--layers", "1"),
    *("--seq-len", "16"),
)


def test_the_largest_batches_come_in_on_compare(terminal, private_runtime):
    screen = terminal(120, 40, *SEARCH)
    screen.until("Memory at the peak", "largest batch, 1 of 2: dp", "in 600 KiB")
    screen.until("largest batch, 2 of 2: ddp")
    screen.until("The largest batch per device:", "(vgpu:0")
    screen.keys("M")
    left = screen.until("At the largest batch per device that fits", "all alike")
    assert "largest batch, " not in left
    screen.keys("q")
    screen.until("EXIT=0", "echo")
    eventually(lambda: not _others(private_runtime), "every process gone")
    assert nothing_but_the_last(private_runtime)


def test_a_closed_window_ends_everything(terminal, private_runtime):
    """The terminal is gone in mid-run, as when its window is closed."""
    screen = terminal(120, 40, "demo", "--gpus", "2", "--steps", "100000")
    screen.until("vgpu:0", "running")
    screen.close()
    eventually(lambda: not _others(private_runtime), "every process gone")


def test_quitting_ends_the_search(terminal, private_runtime):
    screen = terminal(80, 24, *SEARCH)
    screen.until("largest batch, 1 of 2: dp, trying")
    screen.keys("q")
    left = screen.until("EXIT=0", "echo")
    assert "Traceback" not in left
    eventually(lambda: not _others(private_runtime), "every process gone")


ANSWERS = {
    "2": "by median step time", "3": "device 0 peaks at", "4": "replicate: vgpu:0 → ",
    "5": "last step", "6": "highest: ", "7": "Memory at the peak", "8": "dp",
    "9": "No output", "0": "One process, a thread per device",
    "?": "Keys in How it works",
}  # fmt: skip
"""What each view says of that run, on the smallest screen."""


def test_a_viewer_waits_shows_a_run_and_keeps_its_end(terminal, private_runtime):
    small = terminal(80, 24)
    small.until("dpwatch demo --gpus 4")
    run = start("dpwatch.trainer", "--strategy", "dp", "--gpus", "2", "--steps", "40",
                DPWATCH_HUB_LINGER_S="1")  # fmt: skip
    small.until("vgpu:1", "dp")
    second = terminal(120, 35)
    second.until("vgpu:1", "dp")
    second.keys("q")
    second.until("EXIT=0")
    run.communicate(timeout=60)
    assert run.returncode == 0
    assert "40" in small.until("finished", "vgpu:1")
    for key, words in ANSWERS.items():
        small.keys(key)
        small.until(f"[{key} ", words)
    small.keys("1")
    small.until("[1 ", "vgpu:1")
    small.resize(60, 20)
    small.until("dpwatch needs 80×24 cells; this terminal has 60×20")
    small.resize(80, 24)
    small.until("vgpu:1")
    small.keys("Enter")
    small.until("rank 0 · vgpu:0", "Time of a step")
    small.keys("Escape")
    small.until("step time")  # an escape and a q in one go would be alt+q
    small.keys("q")
    small.until("EXIT=0")


@pytest.mark.parametrize(("end", "code"), [("C-c", 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_however_it_ends_the_terminal_is_restored(terminal, private_runtime, end, code):
    screen = terminal(100, 30, "demo", "--gpus", "2", "--steps", "100000")
    screen.until("vgpu:1", "running")
    if isinstance(end, signal.Signals):
        os.kill(screen.pid("dpwatch"), end)
    else:
        screen.keys(end)
    left = screen.until(f"EXIT={code}", "echo")
    assert "Traceback" not in left
    eventually(lambda: not _others(private_runtime), "every process gone")


def _others(place):
    """Processes of the runtime directory that are not the terminal's own."""
    return [
        pid for pid in processes_with(str(place)) if _name(pid) not in ("tmux: server", "sh", "cat")
    ]


def _name(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "cat"
