"""The runtime directory: private, refused in one line where it can't be used."""

import os

import pytest

from dpwatch.wire import paths
from dpwatch.wire.paths import RunDir, RunInfo, RuntimeDirError


def test_directories_are_private(private_runtime, monkeypatch):
    monkeypatch.setenv("DPWATCH_RUNTIME_DIR", str(private_runtime / "new"))
    place = paths.run_dir("a run / with: odd names")
    assert place.path.name == "a-run-with-odd-names"
    assert place.path.stat().st_mode & 0o777 == 0o700
    assert place.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_directory_open_to_others_is_refused(private_runtime):
    private_runtime.chmod(0o777)
    with pytest.raises(RuntimeDirError, match="chmod 700"):
        paths.runtime_dir()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_an_unwritable_directory_is_refused(private_runtime):
    private_runtime.chmod(0o500)
    with pytest.raises(RuntimeDirError, match="DPWATCH_RUNTIME_DIR"):
        paths.runtime_dir()


def test_a_runtime_directory_that_cannot_be_made_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPWATCH_RUNTIME_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(RuntimeDirError, match="DPWATCH_RUNTIME_DIR"):
        paths.runtime_dir()


def test_a_path_too_long_for_a_socket_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("DPWATCH_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(RuntimeDirError, match="107 bytes"):
        paths.run_dir("run")


def test_one_lock_one_hub():
    place = paths.run_dir("run")
    assert not place.has_hub()
    held = place.try_lock()
    assert place.has_hub()
    assert place.try_lock() is None
    os.close(held)
    assert not place.has_hub()


def test_a_dead_hubs_folder_is_cleared_and_a_living_ones_listed():
    dead, alive, empty = (paths.run_dir(name) for name in ("dead", "alive", "empty"))
    for place in (dead, alive):
        place.write_info(RunInfo(place.run_id, "here", 1, 2.0))
    held = alive.try_lock()
    assert [place.run_id for place in paths.list_runs()] == ["alive"]
    assert not dead.path.exists()
    assert empty.path.exists()  # a rank may be about to start its hub
    os.close(held)


def test_a_killed_hubs_folder_waits_for_the_successor_under_way():
    place = paths.run_dir("run")
    place.write_info(RunInfo("run", "here", 1, 2.0))
    assert place.prepare()  # a hub is being started, and has no lock yet
    assert list(paths.list_runs()) == []
    assert place.path.exists()


def test_a_folder_cleared_away_is_made_anew_for_a_hub():
    place = paths.run_dir("run")
    place.write_info(RunInfo("run", "here", 1, 2.0))
    assert list(paths.list_runs()) == []
    assert place.try_lock() is None
    assert place.prepare()
    assert place.path.stat().st_mode & 0o777 == 0o700
    held = place.try_lock()
    assert not place.prepare()
    os.close(held)


def test_the_lock_of_a_hub_that_has_removed_its_folder_is_nobodys(monkeypatch):
    place = paths.run_dir("run")
    flock = paths.fcntl.flock

    def late(fd, how):
        place.lock_file.unlink()
        flock(fd, how)

    monkeypatch.setattr(paths.fcntl, "flock", late)
    assert place.try_lock() is None


def test_removing_leaves_what_is_not_ours():
    place = paths.run_dir("run")
    (place.path / "notes.txt").write_text("mine")
    place.write_info(RunInfo("run", "here", 1, 2.0))
    place.remove()
    assert sorted(p.name for p in place.path.iterdir()) == ["notes.txt"]


def test_run_json_that_is_no_json_is_no_run(private_runtime):
    place = RunDir(private_runtime / "odd")
    place.path.mkdir()
    place.info_file.write_bytes(b"\xff{")
    assert place.read_info() is None
