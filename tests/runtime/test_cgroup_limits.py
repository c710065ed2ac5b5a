"""Cores and memory under control groups."""

import os
from pathlib import Path

import pytest

from dpwatch.runtime import cgroup_limits


def test_cores_are_the_affinity_or_the_quota(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for quota, cores in ((None, 8), (2.5, 2), (0.5, 1), (64.0, 8)):
        monkeypatch.setattr(cgroup_limits, "cpu_quota", lambda quota=quota: quota)
        assert cgroup_limits.cores() == cores


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """A fake tree of control groups; this process is in /pod/box."""
    box = tmp_path / "pod" / "box"
    box.mkdir(parents=True)
    read = Path.read_text

    def read_text(path, *arguments, **options):
        if str(path) == "/proc/self/cgroup":
            return "1:name=systemd:/x\n0::/pod/box\n"
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    return tmp_path, box


def test_the_tightest_group_counts(groups):
    root, box = groups
    assert cgroup_limits.cpu_quota(root) is None
    assert cgroup_limits.memory_limit(root) is None
    (box / "cpu.max").write_text("400000 100000\n")
    (box.parent / "cpu.max").write_text("150000 100000\n")
    (root / "cpu.max").write_text("max 100000\n")
    (box / "memory.max").write_text("max\n")
    (box.parent / "memory.max").write_text("1024\n")
    assert cgroup_limits.cpu_quota(root) == 1.5
    assert cgroup_limits.memory_limit(root) == 1024
