"""The script's exceptions, raised while the probe's own code runs."""

import ctypes
import functools
import os
import signal
import threading

import pytest

from dpwatch.probe.foreign import is_foreign, suppress_own
from dpwatch.probe.steps.models import strategy_of


class TimeUp(Exception):
    pass


def with_frame(signum, frame):
    raise TimeUp


def without_names(*_):
    raise RuntimeError("time is up")  # a class that torch raises too


def that_lets_go(signum, frame):
    del frame
    raise ValueError("time is up")


class Handler:
    def __call__(self, signum, frame):
        raise TimeUp

    def method(self, signum, frame):
        raise OSError("time is up")


HANDLERS = [
    with_frame,
    without_names,
    that_lets_go,
    Handler(),
    Handler().method,
    functools.partial(lambda kind, signum, frame: (_ for _ in ()).throw(kind()), TimeUp),
]


@pytest.fixture
def handle():
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGUSR1, before)


class DataParallel:
    """A module of the script's, interrupted while the probe examines it."""

    def __init__(self, act):
        self.act = act

    def modules(self):
        return iter([self])

    @property
    def device_ids(self):
        self.act()
        return ()


def interrupted_in_probe(act):
    try:
        strategy_of(DataParallel(act))
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("handler", HANDLERS)
def test_signal_handler_exceptions_are_the_scripts(handle, handler):
    handle(handler)
    error = interrupted_in_probe(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert is_foreign(error)


def test_async_exceptions_are_the_scripts():
    me = ctypes.c_ulong(threading.get_ident())
    raised = []

    def probe_work():
        code = compile(
            "def work(raise_into, me, error):\n"
            "    raise_into(me, error)\n"
            "    for _ in range(1000): pass\n",
            os.path.join(os.path.dirname(os.path.abspath(is_foreign.__code__.co_filename)), "x.py"),
            "exec",
        )
        names = {}
        exec(code, names)
        try:
            names["work"](ctypes.pythonapi.PyThreadState_SetAsyncExc, me, ctypes.py_object(TimeUp))
        except TimeUp as error:
            raised.append(error)

    probe_work()
    trace = raised[0].__traceback__
    raised[0].__traceback__ = trace.tb_next  # the test itself is not the probe
    assert is_foreign(raised[0])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_keyboard_interrupt_and_system_exit_are_the_scripts(error):
    assert is_foreign(error)


def test_script_code_called_by_the_probe_raises_to_the_probe():
    def overridden():
        raise TimeUp

    assert not is_foreign(interrupted_in_probe(overridden))


def test_the_probes_own_errors_are_not_foreign():
    with pytest.raises(AttributeError) as raised:
        strategy_of(None).nothing  # noqa: B018
    assert not is_foreign(raised.value)


def test_a_time_limit_passes_where_the_probes_own_errors_do_not(handle):
    def time_limit(signum, frame):
        raise TimeoutError("time is up")  # which is an OSError

    handle(time_limit)
    with pytest.raises(TimeoutError), suppress_own(OSError):
        os.kill(os.getpid(), signal.SIGUSR1)
    with suppress_own(OSError):
        os.stat("/nowhere")
