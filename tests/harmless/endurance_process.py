"""The process that trains for long: `python -m tests.harmless.endurance_process KIND COUNT`.

Prints one JSON object: `figures`, measured ten times after a warm-up of a tenth, and `left`, what
is still there after `close()`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim import optimizer as optimizers
from torch.utils.data import dataloader

import dpwatch

LOOKS = 10
NEW_MODEL = 500
"""Steps after which model, optimizer and loader are made anew: what is kept of each must go."""


def main() -> None:
    """Runs the kind that the command line names."""
    kind, count = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    train(60)  # what torch itself sets up at first use
    before, held = hooked(), measure(None)
    figures = {"steps": steps, "reopen": reopen, "fork": fork}[kind](count)
    after, now = hooked(), measure(None)
    left = {
        "hooks_left": [name for name in before if before[name] != after[name]],
        "threads_left": [t.name for t in threading.enumerate() if t is not threading.main_thread()],
        "descriptors_left": _more(held, now, "descriptors"),
        "children_left": _more(held, now, "children"),
    }
    print(json.dumps({"figures": figures, "left": left}))


def steps(count: int) -> Any:
    """Trains in one run."""
    figures = []
    with dpwatch.watch() as probe:
        for look in range(LOOKS + 1):
            train(count // (LOOKS + 1))
            if look:
                figures.append(measure(probe))
    return figures


def reopen(count: int) -> Any:
    """Opens and closes a probe, and trains a little in between."""
    figures = []
    for look in range(LOOKS + 1):
        for _ in range(max(1, count // (LOOKS + 1))):
            with dpwatch.watch():
                train(14)
        if look:
            figures.append(measure(None))
    return figures


def fork(count: int) -> Any:
    """Forks without a probe and with one, in turn; milliseconds until the child has ended."""
    took: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(LOOKS):
        for kind, found in took.items():
            with dpwatch.watch() if kind == "with" else contextlib.nullcontext():
                train(14)
                for _ in range(count // (2 * LOOKS)):
                    began = time.perf_counter()
                    child = os.fork()
                    if not child:
                        os._exit(0)
                    os.waitpid(child, 0)
                    found.append(1e3 * (time.perf_counter() - began))
    return took


def train(count: int) -> None:
    """Short steps, whose models and loaders change now and then."""
    for number in range(count):
        if number % NEW_MODEL == 0:
            model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
            loader = torch.utils.data.DataLoader(list(torch.randn(4, 2, 4)), batch_size=None)
            batches = iter(loader)
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        optimizer.zero_grad()
        model(batch).pow(2).mean().backward()
        optimizer.step()


def _descriptors() -> int:
    """Those open now, once another thread that has a file open just then could go on."""
    time.sleep(1e-4)
    return len(os.listdir("/proc/self/fd"))


def measure(probe: Any) -> dict[str, int]:
    """What this process holds."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    thread = threading.get_native_id()
    return {
        "allocated_bytes": _allocated(),
        "resident_bytes": 1024 * int(status.split("VmRSS:")[1].split()[0]),
        "python_blocks": sys.getallocatedblocks(),
        # The least of many: the sender may have a file of /proc open for a moment.
        "descriptors": min(_descriptors() for _ in range(100)),
        "threads": int(status.split("Threads:")[1].split()[0]),
        "children": len(Path(f"/proc/self/task/{thread}/children").read_text().split()),
        "probe_objects": 0 if probe is None else _objects(probe),
    }


def hooked() -> dict[str, Any]:
    """All places where a probe hooks in, by what stands there."""
    return {
        "Module.__call__": id(vars(Module)["__call__"]),
        "autograd.backward": id(torch.autograd.backward),
        "autograd.grad": id(torch.autograd.grad),
        "Tensor.backward": id(torch.Tensor.backward),
        "loader": id(vars(dataloader._BaseDataLoaderIter)["__next__"]),
        "GradScaler.scale": id(vars(torch.amp.GradScaler)["scale"]),
        "Optimizer.__init__": id(vars(Optimizer)["__init__"]),
        "optimizer hooks": [
            len(optimizers._global_optimizer_pre_hooks),
            len(optimizers._global_optimizer_post_hooks),
        ],
        "init_process_group": id(torch.distributed.init_process_group),
        "storage resize": id(torch.UntypedStorage.resize_),
        "excepthook": id(sys.excepthook),
        "threading.excepthook": id(threading.excepthook),
        "stdout, stderr": [sorted(vars(stream)) for stream in (sys.stdout, sys.stderr)],
        "finders": [type(finder).__name__ for finder in sys.meta_path],
        "gc callbacks": len(gc.callbacks),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "function modes": torch._C._len_torch_function_stack(),
        "path": list(sys.path),
    }


def _more(held: dict[str, int], now: dict[str, int], name: str) -> list[str]:
    return [f"{now[name] - held[name]} more"] if now[name] > held[name] else []


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _allocated() -> int:
    """Bytes that are allocated through glibc, 0 where that can't be had."""
    mallinfo2: Callable[[], Any] | None = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _Mallinfo
    told = mallinfo2()
    return int(told.uordblks + told.hblkhd)


def _objects(probe: Any) -> int:
    """Objects that a probe holds, without the script's own and without code."""
    foreign = (
        Module,
        Optimizer,
        torch.Tensor,
        type,
        types.ModuleType,
        types.CodeType,
        types.FrameType,
    )
    waiting, seen = [probe], set()
    while waiting:
        here = waiting.pop()
        if id(here) in seen or isinstance(here, foreign):
            continue
        seen.add(id(here))
        if isinstance(here, types.FunctionType):
            waiting += [here.__closure__, here.__defaults__]
        elif not isinstance(here, types.BuiltinFunctionType):
            waiting += gc.get_referents(here)
    return len(seen)


if __name__ == "__main__":
    main()
