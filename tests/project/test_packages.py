"""What is installed is what is there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    pytest.skip("tomllib came with Python 3.11", allow_module_level=True)
import tomllib

ROOT = Path(__file__).parents[2]


def test_every_folder_of_modules_is_installed():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"dpwatch": "dpwatch", "dpwatch.trainer": "trainer", "dpwatch.demo": "demo"}
    assert told["package-dir"] == folders
    there = {
        ".".join([name, *file.parent.relative_to(ROOT / folder).parts])
        for name, folder in folders.items()
        for file in (ROOT / folder).rglob("*.py")
    }
    assert sorted(told["packages"]) == sorted(there)
