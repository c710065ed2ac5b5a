"""Running the real command as a user would, and finding what it left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

DEADLINE_S = 90

STARTED = []
"""By `start`, in this test."""


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def dpwatch(*arguments, module="dpwatch.cli", **more):
    """Runs `dpwatch …` to its end."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())",
         *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_S,
        env=environment(**more),
    )  # fmt: skip


def start(*arguments, **more):
    """Starts a Python module in a session of its own, which ends with the test at the latest.

    A test run in the background of a shell has SIGINT ignored, and its children inherit that.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env=environment(**more),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    STARTED.append(process)
    return process


def end_all():
    """Kills what a failed test has left running."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def processes_with(text):
    """Pids of living processes whose environment holds the text (zombies have none)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                held = (entry / "environ").read_bytes()
            except OSError:
                continue
            if text.encode() in held:
                found.append(int(entry.name))
    return found


def nothing_but_the_last(place):
    """Whether nothing is left in a runtime directory but what `dpwatch --last` shows."""
    return {path.name for path in place.iterdir()} <= {".last"}


def eventually(condition, what):
    """Waits for another process to bring about a state that nobody announces."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"never came: {what}")
