"""The runtime directory: private, and refused with one line if it cannot be used."""

import os

import pytest

from dpwatch.runtime import listing, paths, run_dir
from dpwatch.runtime.paths import RunDir, RunInfo, RuntimeDirError


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


def test_a_dead_hubs_directory_is_removed_and_a_running_ones_listed():
    dead, alive, empty = (paths.run_dir(name) for name in ("dead", "alive", "empty"))
    for place in (dead, alive):
        place.write_info(RunInfo(place.run_id, "here", 1, 2.0))
    held = alive.try_lock()
    assert [place.run_id for place in listing.list_runs()] == ["alive"]
    assert not dead.path.exists()
    assert empty.path.exists()  # a rank may be about to start its hub
    os.close(held)


def test_a_killed_hubs_directory_is_kept_for_its_successor():
    place = paths.run_dir("run")
    place.write_info(RunInfo("run", "here", 1, 2.0))
    assert place.prepare()  # a hub is being started, and has no lock yet
    assert list(listing.list_runs()) == []
    assert place.path.exists()


def test_a_removed_directory_is_recreated_for_a_hub():
    place = paths.run_dir("run")
    place.write_info(RunInfo("run", "here", 1, 2.0))
    assert list(listing.list_runs()) == []
    assert place.try_lock() is None
    assert place.prepare()
    assert place.path.stat().st_mode & 0o777 == 0o700
    held = place.try_lock()
    assert not place.prepare()
    os.close(held)


def test_the_lock_of_a_removed_directory_is_not_taken(monkeypatch):
    place = paths.run_dir("run")
    flock = run_dir.fcntl.flock

    def late(fd, how):
        place.lock_file.unlink()
        flock(fd, how)

    monkeypatch.setattr(run_dir.fcntl, "flock", late)
    assert place.try_lock() is None


def test_removing_leaves_what_is_not_ours():
    place = paths.run_dir("run")
    (place.path / "notes.txt").write_text("mine")
    place.write_info(RunInfo("run", "here", 1, 2.0))
    place.remove()
    assert sorted(p.name for p in place.path.iterdir()) == ["notes.txt"]


def test_an_invalid_run_json_is_not_a_run(private_runtime):
    place = RunDir(private_runtime / "odd")
    place.path.mkdir()
    place.info_file.write_bytes(b"\xff{")
    assert place.read_info() is None


def test_links_are_not_followed(private_runtime, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    place = paths.run_dir("run")
    for name in ("run.json", "lock", "hub.log", "run.new"):
        (elsewhere / name).write_text("{}")
        (place.path / name).symlink_to(elsewhere / name)
    assert place.read_info() is None
    assert not place.has_hub()
    with pytest.raises(OSError, match="symbolic link"):
        place.try_lock()
    with pytest.raises(OSError, match="symbolic link"):
        place.log("a line")
    place.write_info(RunInfo("run", "here", 1, 2.0))
    assert place.read_info() is not None
    assert {each.read_text() for each in elsewhere.iterdir()} == {"{}"}
    (private_runtime / "other").symlink_to(elsewhere)
    with pytest.raises(RuntimeDirError, match="symbolic link"):
        paths.run_dir("other")
    link = tmp_path / "link"
    link.symlink_to(elsewhere)
    monkeypatch.setenv("DPWATCH_RUNTIME_DIR", str(link))
    with pytest.raises(RuntimeDirError, match="symbolic link"):
        paths.runtime_dir()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(private_runtime):
    place = paths.run_dir("run")
    place.write_info(RunInfo("run", "here", 1, 2.0))
    held = place.try_lock()
    assert [each.run_id for each in listing.list_runs()] == ["run"]
    os.chown(place.path, 65534, 65534)
    assert list(listing.list_runs()) == []
    with pytest.raises(RuntimeDirError, match="open to other users"):
        paths.run_dir("run")
    os.chown(private_runtime, 65534, 65534)
    with pytest.raises(RuntimeDirError, match="open to other users"):
        paths.runtime_dir()
    os.close(held)


def test_a_runs_folder_open_to_others_is_refused(private_runtime):
    place = paths.run_dir("run")
    place.path.chmod(0o750)
    with pytest.raises(RuntimeDirError, match="chmod 700"):
        paths.run_dir("run")
    (private_runtime / "file").write_text("")
    with pytest.raises(RuntimeDirError, match="cannot create"):
        paths.run_dir("file")


def test_a_pipe_or_large_file_as_run_json_is_not_read():
    place = paths.run_dir("run")
    os.mkfifo(place.info_file)
    assert place.read_info() is None
    place.info_file.unlink()
    place.info_file.write_bytes(b" " * (run_dir.INFO_BYTES + 1))
    assert place.read_info() is None
    for odd in ('"hub_pid": -1', '"started_wall_s": 1e300', '"run_id": "' + "x" * 999 + '"'):
        fields = '"run_id": "run", "host": "h", "hub_pid": 1, "started_wall_s": 2.0, '
        place.info_file.write_text("{" + fields + odd + "}")
        assert place.read_info() is None
