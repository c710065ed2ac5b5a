"""The documents and the code say the same."""

import re
from pathlib import Path

import msgspec
import pytest

from dpwatch.cli import doctor, stacks
from dpwatch.cli.checks.check import Check
from dpwatch.demo import max_batch, sweep
from dpwatch.probe.stack.frameworks import PURPOSES
from dpwatch.run.model import snapshot
from dpwatch.trainer.registry import known_names
from dpwatch.wire import messages
from tests.e2e.added import ADDED

ROOT = Path(__file__).parents[2]


def text(name):
    return (ROOT / "docs" / name).read_text()


def structs(module, base):
    found = [getattr(module, name) for name in vars(module)]
    return [s for s in found if isinstance(s, type) and issubclass(s, base) and s is not base]


def test_protocol_version():
    assert f"protocol version {messages.PROTOCOL_VERSION}" in text("protocol.md").lower()


def test_every_record_and_its_fields_in_order():
    page = text("protocol.md")
    for record in structs(messages, messages.Record):
        tag = msgspec.inspect.type_info(record).tag
        section = page.split(f"### `{tag}`")
        assert len(section) == 2, f"docs/protocol.md has no section `{tag}`"
        table = section[1].split("###")[0]
        named = re.findall(r"^\| `(\w+)`", table, re.M)
        assert named == list(record.__struct_fields__), tag


JSON_SECTIONS = {
    "## Summary": ("Summary",),
    "## A run": ("Run", "Model", "Loss"),
    "## `ranks[]`": ("Rank", "StepTime", "PhaseTimes", "CommTimes", "GpuUse"),
    "### `memory`": ("MemoryUse", "Categories"),
    "## `other_hosts[]`": ("HostView",),
    "## `collectives[]`": ("CollectiveStats", "LastArrival"),
    "## `issuers[]`": ("IssuerStats",),
    "## `messages[]`": ("MessageStats",),
    "## `transfers[]`": ("TransferStats",),
    "## `balance`": ("Balance",),
    "## `diagnoses[]`": ("Diagnosis",),
    "## `alerts[]`": ("Alert",),
}


@pytest.mark.parametrize("heading", JSON_SECTIONS)
def test_every_json_field_stands_in_its_section(heading):
    page = text("json.md")
    assert snapshot.SCHEMA in page
    _, found, rest = page.partition(f"\n{heading}")
    assert found
    section = re.split(r"\n##? ", rest)[0]
    for name in JSON_SECTIONS[heading]:
        for field in getattr(snapshot, name).__struct_fields__:
            assert f"`{field}`" in section, f"{heading} does not name {name}.{field}"


def test_the_json_of_searches_and_sweeps():
    page = text("json.md")
    for module in (max_batch, sweep):
        assert f"`{module.SCHEMA}`" in page
    for struct in (max_batch.MaxBatches, max_batch.LargestBatch, max_batch.DevicePeak,
                   sweep.Sweep, sweep.Point):  # fmt: skip
        for field in struct.__struct_fields__:
            assert f"`{field}`" in page, f"docs/json.md does not name {struct.__name__}.{field}"


def test_the_json_of_the_doctor():
    page = text("json.md")
    assert f"`{doctor.SCHEMA}`" in page
    for field in Check.__struct_fields__:
        assert f"`{field}`" in page.split(doctor.SCHEMA, 1)[1], f"docs/json.md lacks {field}"


def test_the_json_of_stacks():
    page = text("json.md")
    assert f"`{stacks.SCHEMA}`" in page
    for struct in (stacks.Stacks, stacks.RunStacks, stacks.RankAnswer, stacks.Thread):
        for field in struct.__struct_fields__:
            assert f"`{field}`" in page.split(stacks.SCHEMA, 1)[1], f"docs/json.md lacks {field}"


def test_no_path_of_a_machine():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        assert "/root/" not in path.read_text()


def test_local_links_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_every_strategy_has_its_page_with_figures():
    page = text("strategies.md")
    for name in known_names():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        figures = section.split(f"<!-- figures: {name} -->")[1].split("<!-- end -->")[0]
        assert "vgpu:0" in figures, f"docs/strategies.md has no figures of {name}: make figures"


def test_every_test_that_the_security_page_names():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text("security.md"))
    assert named
    for name in named:
        assert f"def {name}(" in tests, f"docs/security.md names {name}, which does not exist"
    for path in re.findall(r"`(tests/[\w/]+\.py)`", text("security.md")):
        assert (ROOT / path).exists(), path


def test_every_purpose_of_a_frameworks_collectives_has_its_row_and_its_test():
    page = text("frameworks.md")
    told = {(purpose.framework, purpose.text) for purpose in PURPOSES.values()}
    held = {(row.framework, row.purpose) for rows in ADDED.values() for row in rows if row.purpose}
    assert {each for each in told if each[0] != "DeepSpeed"} == held  # seen by hand only
    for _, purpose in told:
        assert f"| {purpose} |" in page, f"docs/frameworks.md does not name: {purpose}"
