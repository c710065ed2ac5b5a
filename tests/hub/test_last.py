"""Finished runs, kept after their hubs have exited."""

import os
import stat

import pytest

from dpwatch.hub import last
from dpwatch.run.derive.summarize import view
from dpwatch.runtime.kept_runs import FOLDER
from dpwatch.runtime.listing import list_runs
from dpwatch.runtime.run_dir import FALLBACK
from dpwatch.viewer.last_runs import last_runs
from dpwatch.wire.messages import Bye
from tests.frames import batch, ddp_run, hello, played, step
from tests.hubs import has, rank, serving, until, watching


def a_run(run_id="run", began_s=1.0):
    state = played(ddp_run(steps=3, ranks=2))
    state.run_id, state.began_s = run_id, began_s
    return state


def names(views):
    return {found.run.run_id for found in views}


def test_a_kept_run_looks_as_it_did_live(private_runtime):
    state = a_run()
    last.save(private_runtime, state)
    (found,) = last_runs()
    assert found == view(state, "closed")
    files = [private_runtime / FOLDER, private_runtime / FOLDER / "run"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o700, 0o600]


def test_a_hub_keeps_its_run_when_it_ends(private_runtime):
    with serving() as hub, rank(hub.place) as send, watching() as watcher:
        send(batch(hello(), step(0), step(1), pid=os.getpid()))
        send(batch(Bye("finished"), seq=1, pid=os.getpid()))
        seen = until(watcher, has("run", state="finished")).runs[0].run
    assert list_runs() == []
    with watching(kept=last_runs(), most=1) as watcher:
        (shown,) = watcher.snapshot().runs
    assert shown.connection == "closed"
    assert (shown.run.steps, shown.run.state) == (seen.steps, "finished")


def test_a_run_that_goes_on_is_not_kept(private_runtime):
    last.save(private_runtime, played([batch(hello(), step(0), pid=os.getpid())]))
    assert last_runs() == []


def test_the_newest_are_kept(private_runtime):
    for n in range(last.MOST + 3):
        last.save(private_runtime, a_run(f"run.{n}"))
    assert names(last_runs()) == {f"run.{n}" for n in range(3, last.MOST + 3)}


def test_a_fallback_directory_keeps_nothing(tmp_path):
    place = tmp_path / f"{FALLBACK}1"
    place.mkdir()
    last.save(place, a_run())
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x92\x01\xc0", b"\x92\xff\xc0"])
def test_invalid_files_are_left_out(private_runtime, content):
    last.save(private_runtime, a_run("good"))
    (private_runtime / FOLDER / "bad").write_bytes(content)
    os.mkfifo(private_runtime / FOLDER / "pipe")
    assert names(last_runs()) == {"good"}


def test_a_folder_that_others_may_read_is_not_used(private_runtime):
    last.save(private_runtime, a_run())
    (private_runtime / FOLDER).chmod(0o755)
    assert last_runs() == []
    last.save(private_runtime, a_run("another"))
    assert not (private_runtime / FOLDER / "another").exists()


def test_live_and_kept_runs_are_ordered_by_start(private_runtime):
    old, new = (view(a_run(name, at), "closed") for name, at in (("old", 1.0), ("new", 9e9)))
    with serving() as hub, rank(hub.place) as send, watching(kept=[old, new], most=2) as watcher:
        send(batch(hello(), step(0), pid=os.getpid()))
        seen = until(watcher, has("run", steps=1))
        assert [each.run.run_id for each in seen.runs] == ["new", "run"]
