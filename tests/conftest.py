"""What every test gets: a private runtime directory, and nothing inherited from outside."""

import signal
import sys

import pytest

from dpwatch.cli.signals import ENDING
from tests.processes import end_all


@pytest.fixture(autouse=True)
def private_runtime(monkeypatch, tmp_path_factory):
    # Short on purpose: the path of a unix socket holds 107 bytes.
    place = tmp_path_factory.mktemp("rt", numbered=True)
    monkeypatch.setenv("DPWATCH_RUNTIME_DIR", str(place))
    # And no settings of whoever runs the tests.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "config"))
    for name in ("DPWATCH_CONFIG", "DPWATCH_THEME", "DPWATCH_VIEW"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DPWATCH", "DPWATCH_RUN_ID", "DPWATCH_SESSION", "DPWATCH_OUTPUT", "RANK",
                 "WORLD_SIZE", "LOCAL_RANK", "NO_COLOR"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    yield place
    end_all()


@pytest.fixture(autouse=True)
def signals_stay():
    """A command run in this process unwinds at SIGTERM; a later test's pool has to end by it."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, *ENDING)}
    yield
    for signum, handler in before.items():
        if signal.getsignal(signum) is not handler:
            signal.signal(signum, handler)


@pytest.fixture(autouse=True)
def no_probe_stays():
    """A probe that a test forgets would be seen by those that come after it, in another file."""
    yield
    if torch := sys.modules.get("torch"):
        call = vars(torch.nn.Module)["__call__"]
        assert call.__module__ == "torch.nn.modules.module"
        assert call.__code__.co_filename == torch.nn.modules.module.__file__, "a probe was left"
        assert torch._C._is_torch_function_enabled()
