"""The manual page: up to date, complete, and readable by who reads such pages."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpwatch.cli import manual
from dpwatch.cli.command_line import command_line
from dpwatch.cli.parser import build_parser

FILE = Path(__file__).parents[2] / "docs" / "dpwatch.1"
PACKAGES = {"man": "man-db"}
LINE = re.compile(r"\\f[BIR]|\\&")


def said():
    return FILE.read_text(encoding="utf-8")


def test_it_is_up_to_date():
    root = command_line(build_parser())
    assert manual.page(root, manual.date_of(said())) == said(), "make manual"


def test_every_command_and_option_is_in_it():
    plain = LINE.sub("", said()).replace(r"\-", "-")
    sections = plain.split("\n.SS ")
    by_name = {each.partition("\n")[0].strip('"'): each for each in sections[1:]}
    for command in command_line(build_parser()):
        section = by_name[command.name] if command.name else plain
        for option in command.options:
            for flag in option.flags:
                assert flag in section, f"{command.name} {flag}"


def test_its_sections():
    assert re.findall(r"^\.SH (.*)$", said(), re.MULTILINE) == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "COMMANDS"),
        *("EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"),
    ]


def test_writing_it_again_keeps_its_date(tmp_path, monkeypatch):
    path = tmp_path / "dpwatch.1"
    path.write_text(said().replace(manual.date_of(said()), "2001-02-03"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["manual", str(path)])
    manual.main()
    assert manual.date_of(path.read_text(encoding="utf-8")) == "2001-02-03"
    path.write_text(path.read_text(encoding="utf-8") + ".\n", encoding="utf-8")
    manual.main()
    assert manual.date_of(path.read_text(encoding="utf-8")) != "2001-02-03"


@pytest.mark.parametrize(
    "words",
    [
        ["mandoc", "-T", "lint"],
        ["groff", "-man", "-ww", "-z"],
        ["man", "--warnings", "-E", "UTF-8", "-l"],
    ],
    ids=lambda words: words[0],
)
def test_its_readers_have_no_complaint(words):
    if shutil.which(words[0]) is None:
        pytest.skip(f"needs {words[0]}: apt-get install {PACKAGES.get(words[0], words[0])}")
    done = subprocess.run([*words, str(FILE)], capture_output=True, text=True, check=False)
    told = done.stderr + (done.stdout if "lint" in words else "")
    assert (done.returncode, told) == (0, "")
