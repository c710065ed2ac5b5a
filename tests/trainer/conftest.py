from __future__ import annotations

import importlib.util
import os
import sys

import pytest

from dpwatch.plan import schemes
from dpwatch.trainer import registry, strategies
from dpwatch.trainer.forkserver import ForkServer

from .support import ROOT, SABOTAGE, RecordingProbe, Trainer


@pytest.fixture
def probe() -> RecordingProbe:
    return RecordingProbe()


@pytest.fixture(autouse=True)
def _unwatched(monkeypatch):
    """No probe and no hub unless a test asks for them; not a rank, whatever runs the tests."""
    monkeypatch.setenv("DPWATCH", "0")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "DPWATCH_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def sabotage(monkeypatch):
    """Adds the strategies of sabotage/."""
    monkeypatch.setattr(registry, "_SPECS", registry._SPECS)
    monkeypatch.setattr(strategies, "build", strategies.build)
    monkeypatch.setattr(schemes, "_SCHEMES", dict(schemes._SCHEMES))
    place = SABOTAGE / "sitecustomize.py"
    spec = importlib.util.spec_from_file_location("sabotage", place)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield
    del sys.modules["dpwatch.trainer.strategies.sabotage"]


@pytest.fixture(scope="session")
def server():
    """One warm fork server for all tests of this process, with the sabotaged strategies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(SABOTAGE), str(ROOT))))
        made = ForkServer()
    with made:
        yield made


@pytest.fixture
def trainer(tmp_path):
    """Creates `Trainer`s; none outlives the test."""
    made = []

    def make(*arguments: str, **options: object) -> Trainer:
        made.append(Trainer(*arguments, temporary=tmp_path, **options))
        return made[-1]

    yield make
    for each in made:
        each.process.kill()
        each.process.communicate()
