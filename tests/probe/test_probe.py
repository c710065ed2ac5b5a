"""The probe as a whole: it starts, changes nothing, and leaves nothing behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer
from torch.utils.data.dataloader import _BaseDataLoaderIter

import dpwatch
from dpwatch import probe as probe_package
from dpwatch.probe import NullProbe, ProbeLike, current
from dpwatch.probe import probe as probe_module
from dpwatch.probe.send import identity
from dpwatch.runtime.paths import RuntimeDirError
from dpwatch.wire.messages import Beat, Bye, Hello, Step


def train(steps: int = 6) -> tuple[list[float], list[torch.Tensor]]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.GELU(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters())
    data = torch.utils.data.TensorDataset(torch.randn(64, 8), torch.randint(0, 4, (64,)))
    losses = []
    batches = iter(torch.utils.data.DataLoader(data, batch_size=8, shuffle=True))
    for _ in range(steps):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.detach().clone() for p in model.parameters()]


def places() -> dict[str, Any]:
    """Everything that a probe may patch."""
    return {
        "module": nn.Module.__dict__["__call__"],
        "backward": torch.autograd.backward,
        "next": _BaseDataLoaderIter.__dict__["__next__"],
        "pre": dict(torch_optimizer._global_optimizer_pre_hooks),
        "post": dict(torch_optimizer._global_optimizer_post_hooks),
        "excepthook": sys.excepthook,
        "modes": len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()),
    }


def test_training_is_bit_identical_with_all_instruments(make_probe, link):
    without, parameters = train()
    probe = make_probe()
    watched, watched_parameters = train()
    probe.close()
    assert watched == without
    assert all(torch.equal(a, b) for a, b in zip(parameters, watched_parameters, strict=True))
    steps = link.records(Step)
    assert all(s.loss in (loss, None) for s, loss in zip(steps, without, strict=True))
    assert steps[0].loss == without[0]
    assert [s.samples for s in steps] == [8] * 6
    assert link.records(Bye) == [Bye("finished")]


def test_what_is_sent_names_the_sender(make_probe, link, monkeypatch):
    monkeypatch.setenv("DPWATCH_RUN_ID", "my run")
    probe = make_probe(strategy="ddp", title="a title", total_steps=9)
    train(2)
    probe.close()
    first = link.batches[0]
    assert (first.run_id, first.rank, first.pid, first.seq) == ("my-run", 0, os.getpid(), 0)
    assert [b.seq for b in link.batches] == list(range(len(link.batches)))
    assert isinstance(first.records[0], Hello)
    hello = link.records(Hello)[-1]
    assert (hello.strategy, hello.title, hello.total_steps) == ("ddp", "a title", 9)
    assert hello.torch_version == torch.__version__
    assert hello.params == 8 * 16 + 16 + 16 * 4 + 4
    assert isinstance(link.batches[-1].records[-1], Bye)


def test_a_hundred_starts_and_closes_restore_everything(make_probe, bare):
    before, threads = places(), threading.active_count()
    for _ in range(100):
        probe = make_probe()
        probe.close()
    assert places() == before
    assert threading.active_count() == threads


def test_everything_is_restored_with_all_instruments(make_probe):
    before = places()
    probe = make_probe()
    train(4)
    assert places()["module"] is not before["module"]
    probe.close()
    probe.close()
    assert places() == before


def test_patches_by_others_stay(make_probe, bare, monkeypatch):
    original = nn.Module.__call__
    probe = make_probe()
    ours = nn.Module.__call__

    def theirs(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    nn.Module.__call__ = theirs
    try:
        probe.close()
        assert nn.Module.__call__ is theirs
        assert nn.Linear(2, 2)(torch.ones(1, 2)).shape == (1, 2)
        train(2)
    finally:
        nn.Module.__call__ = original


def test_the_users_objects_are_not_kept_alive(make_probe):
    probe = make_probe()
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        loss = model(torch.ones(3, 2)).mean()
        loss.backward()
        optimizer.step()
    gone = [weakref.ref(thing) for thing in (model, optimizer, model.weight, loss)]
    del model, optimizer, loss
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4
    probe.close()


def test_a_bug_in_the_probe_turns_it_off_with_one_line(make_probe, bare, link, capsys, monkeypatch):
    expected, _ = train()
    probe = make_probe()
    before = places()["module"]

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(probe.steps, "_end", broken)
    assert train()[0] == expected
    assert probe.over
    assert places()["module"] is not before
    assert capsys.readouterr().err == "dpwatch: not watching this run: a bug of ours\n"
    assert link.records(Bye)[0].state == "lost"


@pytest.mark.parametrize("name", ["module_begins", "backward_begins", "data_begins"])
def test_a_bug_in_any_hook_stays_inside(make_probe, bare, capsys, monkeypatch, name):
    expected, _ = train()
    probe = make_probe()

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(probe.steps, name, broken)
    assert train()[0] == expected
    assert probe.over
    assert capsys.readouterr().err.count("\n") == 1


def test_a_sender_that_cannot_open_turns_the_probe_off(make_probe, bare, link, capsys):
    link.error = RuntimeDirError("cannot write /nowhere; set DPWATCH_RUNTIME_DIR")
    expected, _ = train()
    probe = make_probe()
    assert link.closed.wait(20)
    assert train()[0] == expected
    assert probe.over
    assert capsys.readouterr().err == (
        "dpwatch: not watching this run: cannot write /nowhere; set DPWATCH_RUNTIME_DIR\n"
    )


def test_training_continues_if_the_link_takes_nothing(make_probe, bare, link):
    link.full = True
    expected, _ = train()
    probe = make_probe()
    probe.recorder.capacity = 3
    for _ in range(100):  # the sender may take some out before there are too many
        assert train()[0] == expected
        if probe._publisher.dropped:
            break
    assert probe._publisher.dropped > 0
    probe.close()


@pytest.fixture
def _nothing_compiled_stays():
    """Resets what the memory ledger asks dynamo about."""
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_nothing_compiled_stays")
def test_compiled_models_have_no_extra_graph_breaks(make_probe, bare):
    def compiled() -> tuple[float, int]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        graphs: list[Any] = []

        def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        fast = torch.compile(model, backend=backend, fullgraph=True)
        for _ in range(3):
            loss = fast(torch.ones(2, 4)).sum()
            loss.backward()
        return loss.item(), len(graphs)

    without = compiled()
    make_probe()
    assert compiled() == without


# -- watch() -----------------------------------------------------------------------------------


def test_dpwatch_0_is_a_null_probe(monkeypatch):
    monkeypatch.setenv("DPWATCH", "0")
    before = places()
    with dpwatch.watch() as probe:
        assert isinstance(probe, NullProbe)
        assert places() == before
        with probe.lane(1), probe.phase("forward"), probe.waiting(), probe.owns(1):
            probe.samples(1)
        with probe.transfer("reduce", 1, 0, 4):
            probe.loss(1.0)
    assert current() is None


@pytest.fixture
def linked(monkeypatch, link, bare):
    monkeypatch.setattr(probe_module, "HubLink", lambda: link)
    yield link
    if probe := current():
        probe.close()


def test_watch_returns_the_same_probe_until_closed(linked):
    with dpwatch.watch() as first:
        assert isinstance(first, ProbeLike)
        assert dpwatch.watch(title="other") is first
        assert current() is first
        with dpwatch.watch() as again:
            assert again is first
        assert current() is first
    assert current() is None
    with dpwatch.watch() as second:
        assert second is not first
    runs = [run for run, _ in linked.opened]
    assert len(set(runs)) == 2


def test_an_exception_in_the_with_block_is_the_runs_failure(linked):
    with pytest.raises(RuntimeError, match="out of"), dpwatch.watch():
        raise RuntimeError("out of\nluck")
    assert linked.records(Bye) == [Bye("failed", "RuntimeError: out of luck")]


def test_a_probe_that_cannot_start_says_so_and_does_nothing(monkeypatch, capsys):
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no threads left")

    monkeypatch.setattr(probe_module, "Publisher", broken)
    before = places()
    probe = dpwatch.watch()
    assert isinstance(probe, NullProbe)
    assert places() == before
    assert capsys.readouterr().err == "dpwatch: not watching this run: no threads left\n"


def test_a_forked_child_is_silent_and_works(linked):
    torch.set_num_threads(1)  # torch's own thread pool does not survive a fork
    probe = dpwatch.watch()
    train(2)
    seen, frames = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - measured in the parent
        try:
            signal.alarm(30)  # never to outlive the test
            quiet = current() is None and len(probe.recorder) == 0
            train(2)
            quiet = quiet and len(probe.recorder) == 0 and threading.active_count() == 1
            os.write(frames, b"quiet" if quiet else b"noisy")
        finally:
            os._exit(0)
    os.close(frames)
    with open(seen, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert said == b"quiet"
    train(1)
    probe.close()
    assert len(linked.records(Step)) == 3


def test_a_forked_child_that_watches_is_a_run_of_its_own(linked):
    torch.set_num_threads(1)
    dpwatch.watch()
    seen, frames = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - measured in the parent
        try:
            signal.alarm(60)
            linked.frames.clear()
            with dpwatch.watch():
                train(2)
            told = [linked.opened[-1][0], len(linked.records(Step)), linked.batches[0].seq]
            os.write(frames, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(frames)
    with open(seen, "rb") as pipe:
        run_id, steps, first = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert run_id.endswith(f"-{child}")
    assert (steps, first) == (2, 0)


SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
    run = interpreters.exec
except ImportError:
    import _xxsubinterpreters as interpreters
    run = interpreters.run_string
run(interpreters.create(), "import dpwatch; print(type(dpwatch.watch()).__name__, flush=True)")
print("torch" in sys.modules)
"""


def test_in_a_subinterpreter_it_says_so_and_does_nothing():
    """Importing torch hangs there."""
    done = subprocess.run(
        [sys.executable, "-c", SUBINTERPRETER], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "NullProbe\nFalse\n"
    assert "not watching this run: torch cannot be imported in a subinterpreter" in done.stderr


def test_while_python_shuts_down_it_does_nothing(monkeypatch, linked):
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    assert isinstance(dpwatch.watch(), NullProbe)
    assert linked.opened == []


def test_a_pool_s_next_task_is_a_run_of_its_own_at_the_same_place(linked, monkeypatch):
    marks: list[int] = []
    now = [1]
    monkeypatch.setattr(probe_package, "_rearm", None)
    monkeypatch.setattr(probe_package, "_started", 0)  # whatever tests came before
    for module in (probe_package, identity):
        monkeypatch.setattr(module, "task", lambda: now[0])
    probe_package.watch_implicitly(lambda: marks.append(now[0]))
    first = current()
    train(2)
    probe_package.watch_implicitly(lambda: marks.append(now[0]))
    assert current() is first
    now[0] = 2
    probe_package.watch_implicitly(lambda: marks.append(now[0]))
    second = current()
    assert second is not first
    train(3)
    second.close()
    assert marks == [1, 2]  # each waits for the next
    runs = [run for run, _ in linked.opened]
    assert len(set(runs)) == 1
    begins = [n for n, batch in enumerate(linked.batches) if batch.seq == 0]
    assert len(begins) == 2
    told = linked.batches[: begins[1]]
    assert told[-1].records[-1] == Bye("finished", then="idle")
    assert sum(isinstance(r, Step) for b in told for r in b.records) == 2


SCRIPT = """
import sys, json, torch
from dpwatch.probe import probe as probe_module
from dpwatch.wire import codec
import dpwatch

class Link:
    hub_seen, patience_s = True, 0.0
    def open(self, *a): pass
    def ensure_hub(self, now): pass
    def stack_request(self): pass
    def close(self): pass
    def send(self, frame):
        for r in codec.decode(frame).records:
            if type(r).__name__ == "Bye":
                with open(sys.argv[1], "a") as file:
                    file.write(json.dumps([r.state, r.reason]) + "\\n")
        return True

probe_module.HubLink = Link

def child(*_):
    dpwatch.watch()
    raise ValueError("a bad batch")

if __name__ == "__main__":
    exec(sys.argv[2])
"""


def run_script(tmp_path: Path, code: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    script, said = tmp_path / "script.py", tmp_path / "said"
    script.write_text(SCRIPT)
    said.write_text("")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(said), code], capture_output=True, text=True, env=env
    )
    return done, [json.loads(line) for line in said.read_text().splitlines()]


@pytest.mark.parametrize(
    ("code", "status", "bye"),
    [
        ("dpwatch.watch()", 0, ["finished", ""]),
        ("dpwatch.watch(); 1/0", 1, ["failed", "ZeroDivisionError: division by zero"]),
        (
            "import multiprocessing as m; p = m.get_context('spawn').Process(target=child);"
            "p.start(); p.join(); sys.exit(p.exitcode)",
            1,
            ["failed", "ValueError: a bad batch"],
        ),
    ],
)
def test_every_way_to_end_says_bye(tmp_path, code, status, bye):
    done, said = run_script(tmp_path, code)
    assert done.returncode == status
    assert said == [bye]
    assert "dpwatch" not in done.stderr.replace("dpwatch.watch()", "")


def test_an_unwritable_runtime_directory_is_one_line(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    code = (
        "import torch, dpwatch\n"
        "dpwatch.watch()\n"
        "w = torch.nn.Linear(2, 1)\n"
        "o = torch.optim.SGD(w.parameters(), lr=.1)\n"
        "from dpwatch.probe import current\n"
        "for _ in range(100000):\n"
        "    w(torch.ones(1, 2)).sum().backward(); o.step()\n"
        "    if current() is None: break\n"
        "else: raise SystemExit('still on')\n"
        "print('trained')\n"
    )
    env = {**os.environ, "DPWATCH_RUNTIME_DIR": str(blocker / "x"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert done.stderr.count("\n") == 1
    assert "set DPWATCH_RUNTIME_DIR" in done.stderr


def test_beats_come_while_the_training_thread_is_stuck(make_probe, bare, link):
    probe = make_probe()
    beaten = threading.Event()
    send = link.send

    def listening(frame: bytes) -> bool:
        taken = send(frame)
        if any(b.phase == "backward" for b in link.records(Beat)):
            beaten.set()
        return taken

    link.send = listening
    with probe.phase("backward"):
        assert beaten.wait(20)
    assert link.records(Beat)[-1].rss_bytes > 0
