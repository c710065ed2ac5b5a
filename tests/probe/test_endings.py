"""How a process ends is reported without replacing anything of the script's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpwatch.probe import exit_hooks as endings
from dpwatch.wire.messages import INTERRUPTED, Bye

PYTHON = sys.executable


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def exits_while_handling(cause: BaseException, code: object) -> SystemExit:
    try:
        try:
            raise cause
        except type(cause):
            raise SystemExit(code)  # noqa: B904 - as scripts do
    except SystemExit as error:
        return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("a\nbad   batch"), "ValueError: a bad batch"),
        (ValueError(), "ValueError"),
        (Mute(), "Mute: (no text: its __str__ raises ValueError)"),
        (KeyboardInterrupt(), INTERRUPTED),
        (SystemExit(3), "exit code 3"),
        (SystemExit("no data"), "no data"),
        (exits_while_handling(OSError("disk"), 1), "exit code 1: OSError: disk"),
    ],
)
def test_errors_are_described_in_one_line(error, told):
    assert endings.describe(error) == told


def test_long_errors_keep_both_ends():
    told = endings.describe(RuntimeError("begins " + "x" * 9000 + " indices: 3 4"))
    assert len(told) == endings.REASON_CHARS < 2048
    assert told.startswith("RuntimeError: begins xxx")
    assert told.endswith("xxx indices: 3 4")
    assert "x … x" in told


def test_a_time_limit_during_describe_reaches_the_script():
    class Slow(Exception):
        def __str__(self) -> str:
            signal.raise_signal(signal.SIGALRM)
            return "slow"

    class TimeIsUp(Exception):
        pass

    def late(number: int, frame: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, late)
    try:
        with pytest.raises(TimeIsUp):
            endings.describe(Slow())
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("error", "is_failure"),
    [(None, False), (SystemExit(), False), (SystemExit(0), False), (SystemExit(1), True),
     (SystemExit("x"), True), (ValueError(), True)],
)  # fmt: skip
def test_exit_code_0_is_not_a_failure(error, is_failure):
    assert endings.failed(error) is is_failure


SCRIPT = """
import json, os, sys
from dpwatch.probe import exit_hooks as endings

hook = sys.excepthook

def ended(error):
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps(None if error is None else endings.describe(error)) + "\\n")

endings.prepare(ended, lambda: None)
assert sys.excepthook is hook

class Mute(Exception):
    def __str__(self): raise ValueError("no text")

"""


def run(tmp_path: Path, code: str, *options: str, **more: Any) -> tuple[Any, list[str | None]]:
    """Runs a script that records how it ends. Returns: how it did, and what it recorded."""
    script, told = tmp_path / "script.py", tmp_path / "told"
    script.write_text(SCRIPT + code)
    told.write_text("")
    env = {**os.environ, "TOLD": str(told), "PYTHONPATH": str(tmp_path)}
    command = [PYTHON, *(options or (str(script),))]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, **more)
    return done, [json.loads(line) for line in told.read_text().splitlines()]


HOOK = "sys.excepthook = lambda *a: print('MINE', file=sys.stderr)\n"  # as rich's


@pytest.mark.parametrize(
    ("code", "exit_code", "told"),
    [
        ("", 0, None),
        ("raise ValueError('boom')", 1, "ValueError: boom"),
        ("raise Mute", 1, "Mute: (no text: its __str__ raises ValueError)"),
        (f"{HOOK}raise ValueError('boom')", 1, "ValueError: boom"),
        ("raise KeyboardInterrupt", -2, INTERRUPTED),
        ("sys.exit(3)", 3, None),  # which the hub sees by the exit code
        ("try: 1/0\nexcept ZeroDivisionError: pass", 0, None),
        ("import atexit\natexit.register(lambda: 1/0)", 0, None),
        # What C code printed of a callback's and went on, as PyErr_Print keeps it.
        ("sys.last_exc = sys.last_value = ValueError('in a callback')", 0, None),
    ],
)
def test_every_end_of_a_script(tmp_path, code, exit_code, told):
    done, said = run(tmp_path, code)
    assert (done.returncode, said) == (exit_code, [told])
    assert "dpwatch" not in done.stderr  # no frame of ours in a traceback


def test_a_module_that_is_run_by_name(tmp_path):
    assert run(tmp_path, "raise ValueError('boom')", "-m", "script")[1] == ["ValueError: boom"]


def test_errors_at_a_prompt_do_not_count(tmp_path):
    done, said = run(tmp_path, "", "-i", str(tmp_path / "script.py"), input="1/0\nprint('on')\n")
    assert "ZeroDivisionError" in done.stderr
    assert "on" in done.stdout
    assert said == [None]


CHILD = """
import multiprocessing as mp
def child():
    endings.prepare(ended, lambda: None)
    {ends}
if __name__ == "__main__":
    p = mp.get_context("{method}").Process(target=child)
    p.start()
    p.join()
    os._exit(p.exitcode)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(
    ("ends", "code", "told"),
    [
        ("pass", 0, None),
        ("raise ValueError('bad')", 1, "ValueError: bad"),
        ("sys.exit(4)", 4, "exit code 4"),
    ],
)
def test_multiprocessing_children_say_goodbye_without_atexit(tmp_path, method, ends, code, told):
    done, said = run(tmp_path, CHILD.format(ends=ends, method=method))
    # A spawned child comes to atexit too, when the probe has said goodbye already.
    assert (done.returncode, said[:1]) == (code, [told])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SystemExit(0), Bye("finished")),
        (SystemExit("no data"), Bye("failed", "no data")),
        (KeyboardInterrupt(), Bye("failed", INTERRUPTED)),
        (Mute(), Bye("failed", "Mute: (no text: its __str__ raises ValueError)")),
    ],
)
def test_ends_of_a_with_block(make_probe, bare, link, error, told):
    with pytest.raises(type(error)), make_probe():
        raise error
    assert link.records(Bye) == [told]
