"""A probe that records its calls, and trainer processes."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from dpwatch.trainer.config import TrainConfig

ROOT = Path(__file__).parents[2]
SABOTAGE = Path(__file__).parent / "sabotage"
TINY = {"batch_per_gpu": 2, "seq_len": 16, "d_model": 32, "layers": 1, "heads": 2, "lr": 1e-2}
TINY_OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
PATIENCE_S = 60


def tiny(strategy: str, **changes: object) -> TrainConfig:
    return TrainConfig(strategy=strategy, **{**TINY, "steps": 8, "gpus": 2, **changes})


class RecordingProbe:
    """A `ProbeLike` that records its calls, with the thread's device and phase."""

    def __init__(self) -> None:
        self.transfers: list[tuple[str, int, int, int]] = []
        self.phases: list[tuple[int, str]] = []
        self.sampled: list[tuple[int, int]] = []
        self.owners: list[int] = []
        self.losses: list[float] = []
        self.held: list[tuple[int, object]] = []
        self.waits = 0
        self._here = threading.local()

    @property
    def device(self) -> int:
        return getattr(self._here, "device", 0)

    @contextmanager
    def lane(self, device):
        self._here.device = device
        yield
        self._here.device = 0

    @contextmanager
    def phase(self, name):
        self.phases.append((self.device, name))
        yield

    @contextmanager
    def transfer(self, kind, src, dst, nbytes):
        self.transfers.append((kind, src, dst, nbytes))
        yield

    @contextmanager
    def waiting(self):
        self.waits += 1
        yield

    @contextmanager
    def owns(self, device):
        self.owners.append(device)
        yield

    def holds(self, device, *things):
        self.held.extend((device, thing) for thing in things)

    def samples(self, n):
        self.sampled.append((self.device, n))

    def loss(self, value):
        self.losses.append(value)

    def close(self, state="finished", reason=""):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


class Trainer:
    """`python -m dpwatch.trainer …` as a process in its own session."""

    def __init__(self, *arguments: str, temporary: Path, command: tuple[str, ...] = ()) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(SABOTAGE),
            "TMPDIR": str(temporary),
            # torch's own lasting cache, made by the first optimizer of any program
            "TORCHINDUCTOR_CACHE_DIR": str(temporary.parent / "inductor"),
        }
        self.process = subprocess.Popen(
            [sys.executable, *(command or ("-m", "dpwatch.trainer")), *TINY_OPTIONS, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def first_line(self) -> str:
        """The first progress line: all ranks train."""
        return self.process.stdout.readline()

    def finish(self) -> tuple[int, str, str]:
        """Exit code, the rest of stdout, and stderr."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err

    def server_started(self) -> bool:
        """Waits for the fork server, which is then probably importing torch."""
        return bool(children(self.process.pid))

    def descendants(self) -> list[int]:
        """The fork server, and then the ranks."""
        (server,) = children(self.process.pid)
        return [server, *children(server)]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Watched:
    """Open handles to processes, to wait for their ends without racing for their pids."""

    def __init__(self, pids: list[int]) -> None:
        self._fds = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # a quick one has ended already
                self._fds.append(os.pidfd_open(pid))

    def all_end(self) -> bool:
        """Waits until every one has ended; False if that takes too long."""
        try:
            return all(bool(select.select([fd], [], [], PATIENCE_S)[0]) for fd in self._fds)
        finally:
            for fd in self._fds:
                os.close(fd)


def trained_alone(config: TrainConfig) -> tuple[list[float], dict[str, object]]:
    """Losses and parameters of one device on the same global batches, written out plainly."""
    import torch

    from dpwatch.trainer.data import loader
    from dpwatch.trainer.model import build_model, next_token_loss
    from dpwatch.trainer.strategies.base import make_optimizer

    model = build_model(config)
    optimizer = make_optimizer(model.parameters(), config)
    losses = []
    for tokens in loader(config, rank=0, ranks=1):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16-mixed"):
            loss = next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: value.detach() for name, value in model.named_parameters()}
