"""Which directories are runs, which request a hub, and which are leftovers."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from dpwatch.runtime import hub_request, listing, paths
from dpwatch.runtime.paths import RunDir, RunInfo, RuntimeDirError
from tests.processes import eventually

LONG_AGO_S = 100


def folder(directory, name, *files):
    """A run's directory in which nothing has happened for long."""
    path = Path(directory) / name
    path.mkdir(mode=0o700)
    for each in files:
        (path / each).write_text("")
    return aged(path)


def aged(path):
    then = time.time() - LONG_AGO_S
    for each in (*path.iterdir(), path):
        os.utime(each, (then, then))
    return path


def cleared(*gone):
    """Waits until the directories are removed, which happens on another thread."""
    eventually(lambda: not any(path.exists() for path in gone), f"{gone} cleared away")


def test_leftovers_are_removed_and_starting_runs_are_not(private_runtime):
    empty = folder(private_runtime, "empty")
    begun = folder(private_runtime, "begun", "lock")  # a hub was to be started, and never came
    young = private_runtime / "young"
    young.mkdir()
    starting = folder(private_runtime, "starting", "lock")
    held = RunDir(starting).try_lock()
    theirs = folder(private_runtime, "theirs", "notes.txt")
    assert listing.list_runs() == []
    cleared(empty, begun)
    assert young.exists()
    assert starting.exists()
    assert theirs.exists()
    os.close(held)


def test_removing_thousands_of_empty_directories_does_not_block(private_runtime):
    for number in range(1000):
        (private_runtime / f"r{number}").mkdir()
    for path in private_runtime.iterdir():
        os.utime(path, (time.time() - LONG_AGO_S,) * 2)
    began = time.process_time()
    assert listing.list_runs() == []
    assert time.process_time() - began < 2  # by the process's own time: hosts may be busy
    eventually(lambda: not list(private_runtime.iterdir()), "all cleared away")


def test_a_rank_can_start_while_its_old_directory_is_removed(private_runtime, monkeypatch):
    """The directory is removed between the rank's finding it and its checking it."""
    folder(private_runtime, "run")
    utime = os.utime

    def late(path, *args, **kwargs):
        monkeypatch.setattr(os, "utime", utime)
        assert listing.clear(str(path))
        utime(path, *args, **kwargs)

    monkeypatch.setattr(os, "utime", late)
    place = paths.run_dir("run")
    assert place.path.exists()
    assert time.time() - place.path.stat().st_mtime < LONG_AGO_S / 2
    hub_request.request_hub(place)
    assert not listing.clear(str(place.path))


def test_requests_are_passed_on_and_running_hubs_are_listed():
    wanting, living = paths.run_dir("wanting"), paths.run_dir("living")
    hub_request.request_hub(wanting)
    living.write_info(RunInfo("living", "here", 1, 2.0))
    held = living.try_lock()
    asked = []
    assert [place.run_id for place in listing.list_runs(asked.append)] == ["living"]
    assert [place.run_id for place in asked] == ["wanting"]
    os.close(held)


def test_a_hub_removes_leftovers_when_idle(private_runtime):
    old = folder(private_runtime, "old")
    new = private_runtime / "new"
    new.mkdir()
    listing.clear_all(private_runtime, 60)
    assert not old.exists()
    assert new.exists()
    listing.clear_all(private_runtime / "none", 60)


# -- where they are looked for -----------------------------------------------------------------


@pytest.fixture
def usual(monkeypatch, tmp_path):
    """No runtime directory is named, and the usual ones belong to the test."""
    monkeypatch.delenv("DPWATCH_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "xdg"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for name in ("xdg", "tmp"):
        (tmp_path / name).mkdir()
    return tmp_path


def living(directory, name):
    directory.mkdir(mode=0o700, exist_ok=True)
    place = RunDir(directory / name)
    place.path.mkdir(mode=0o700)
    place.write_info(RunInfo(name, "here", 1, 2.0))
    return place.try_lock()


def test_a_viewer_searches_every_runtime_directory(usual, monkeypatch):
    user = os.getuid()
    held = [living(usual / "xdg" / "dpwatch", "in-xdg"),
            living(usual / "tmp" / f"dpwatch-{user}", "in-tmp")]  # fmt: skip
    assert {place.run_id for place in listing.list_runs()} >= {"in-xdg", "in-tmp"}
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert "in-tmp" in {place.run_id for place in listing.list_runs()}
    named = [str(path) for path in paths.runtime_paths()]
    assert named[0] == str(usual / "tmp" / f"dpwatch-{user}")
    assert {f"/run/user/{user}/dpwatch", f"/tmp/dpwatch-{user}"} <= set(named)
    assert len(named) == len(set(named))
    for lock in held:
        os.close(lock)


def test_a_directory_open_to_others_is_skipped(usual):
    held = living(usual / "xdg" / "dpwatch", "in-xdg")
    assert "in-xdg" in {place.run_id for place in listing.list_runs()}
    (usual / "xdg" / "dpwatch").chmod(0o777)
    assert "in-xdg" not in {place.run_id for place in listing.list_runs()}
    os.close(held)


def test_a_named_directory_is_the_only_one_searched(private_runtime):
    assert paths.runtime_paths() == [private_runtime]
    private_runtime.chmod(0o777)
    with pytest.raises(RuntimeDirError, match="chmod 700"):
        listing.list_runs()


def test_ranks_use_the_directory_of_dpwatch_run(usual, monkeypatch, tmp_path):
    chosen = tmp_path / "chosen"
    chosen.mkdir(mode=0o700)
    monkeypatch.setenv(hub_request.SESSION_DIR, str(chosen))
    assert paths.runtime_path() == chosen
    chosen.chmod(0o777)  # as on another host, where it isn't what it was
    assert paths.runtime_path() == usual / "xdg" / "dpwatch"


def test_a_fallback_directory_goes_with_its_last_run(usual):
    place = paths.private_dir()
    assert place.stat().st_mode & 0o777 == 0o700
    run = RunDir(place / "run")
    run.path.mkdir()
    run.remove()
    assert not place.exists()
