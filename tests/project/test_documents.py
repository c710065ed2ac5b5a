"""The documents and the code say the same."""

import itertools
import re
import types
import typing
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


def wire_word(kind):
    """A record's field's type as protocol.md writes it."""
    kinds, nullable = alternatives(kind)
    (only,) = kinds
    only = getattr(only, "__origin__", only)  # of Annotated, of list[…]
    only = only if isinstance(only, type) else typing.get_origin(only)
    said = "array" if is_struct(only) or only in (list, tuple) else only.__name__
    return f"{said.replace('bytes', 'bin')}{' or nil' * nullable}"


def wire_unit(field):
    """The unit that a record's field's name tells, None where it tells none."""
    ends = {"ns": "ns", "bytes": "B", "c": "°C", "w": "W"}
    return "B" if field.startswith("nbytes") else ends.get(field.rpartition("_")[2])


def test_every_record_and_its_fields_in_order():
    page = text("protocol.md")
    for record in structs(messages, messages.Record):
        tag = msgspec.inspect.type_info(record).tag
        section = page.split(f"### `{tag}`")
        assert len(section) == 2, f"docs/protocol.md has no section `{tag}`"
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]*)\| ", section[1].split("###")[0], re.M)
        fields = msgspec.structs.fields(record)
        assert [row[:2] for row in rows] == [(f.name, wire_word(f.type)) for f in fields], tag
        for field, _, unit in rows:
            assert unit.strip() == (wire_unit(field) or unit.strip()), f"{tag}.{field}"


OBJECTS = {
    "### Summary": snapshot.Summary,
    "### `gpus[]`": snapshot.HostGpu,
    "### `runs[]`": snapshot.Run,
    "### `ranks[]`": snapshot.Rank,
    "### `memory`": snapshot.MemoryUse,
    "### `other_hosts[]`": snapshot.HostView,
    "### `collectives[]`": snapshot.CollectiveStats,
    "### `issuers[]`": snapshot.IssuerStats,
    "### `messages[]`": snapshot.MessageStats,
    "### `transfers[]`": snapshot.TransferStats,
    "### `balance`": snapshot.Balance,
    "### `diagnoses[]`": snapshot.Diagnosis,
    "### `alerts[]`": snapshot.Alert,
    f"## `{max_batch.SCHEMA}`": max_batch.MaxBatches,
    f"## `{sweep.SCHEMA}`": sweep.Sweep,
    f"## `{stacks.SCHEMA}`": stacks.Stacks,
    "### `runs[].ranks[]`": stacks.RankAnswer,
    "### `checks[]`": Check,
}
"""By its heading in json.md, the Struct that the table there describes."""

UNITS = (
    (r"per_s$", "1/s"),
    (r"(share|util|gil_wait|idle|runqueue_wait)$", "0..1"),
    (r"(^|[._])bytes(_per_step)?$", "B"),
    (r"(^|[._])ms(_per_step|\..*)?$", "ms"),
    (r"_s$", "s"),
    (r"_c$", "°C"),
    (r"_w$", "W"),
    (r"_gbps$", "10⁹ B/s"),
)
"""Units that fields' names tell."""


def is_struct(kind):
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def word(kind):
    """A type as json.md writes it."""
    if typing.get_origin(kind) in (list, tuple):
        of = typing.get_args(kind)[0]
        return f"array of {'objects' if is_struct(of) else word(of)}"
    if is_struct(kind) or typing.get_origin(kind) is dict:
        return "object"
    return kind.__name__


def alternatives(kind):
    """What a type allows besides None, and whether it allows None."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return [kind], False
    allowed = typing.get_args(kind)
    return [each for each in allowed if each is not type(None)], type(None) in allowed


def described(struct, before=""):
    """By path, each field's type and whether it may be null; objects without a table unfolded."""
    for field in msgspec.structs.fields(struct):
        path = before + field.name
        kinds, nullable = alternatives(field.type)
        words = [word(kind) for kind in kinds]
        spelled = " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
        of = (typing.get_args(kinds[0]) or kinds)[0]
        unfolded = is_struct(of) and of not in OBJECTS.values()
        if not (unfolded and spelled == "object" and not nullable):
            yield path, (spelled, nullable)
        if unfolded:
            yield from described(of, f"{path}{'[]' * spelled.startswith('array')}.")


def table(heading):
    """By field, the other cells of its row in the table under a heading of json.md."""
    _, found, rest = text("json.md").partition(f"\n{heading}\n")
    assert found, f"docs/json.md has no {heading}"
    lines = re.split(r"\n##+ ", rest)[0].split("\n| field | type | unit | null when | meaning |\n")
    rows = {}
    for line in itertools.takewhile(lambda each: each.startswith("|"), lines[1].splitlines()[1:]):
        fields, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for field in re.findall(r"`([^`]+)`", fields):
            assert field not in rows, f"{heading}: two rows of {field}"
            rows[field] = cells
    return rows


@pytest.mark.parametrize("heading", OBJECTS)
def test_every_json_field_has_its_row_and_its_type(heading):
    rows = table(heading)
    said = {field: (kind, never != "–") for field, (kind, _, never, _) in rows.items()}
    assert said == dict(described(OBJECTS[heading]))
    for field, (_, unit, _, _) in rows.items():
        known = next((unit for pattern, unit in UNITS if re.search(pattern, field)), unit)
        assert unit == known, field


def test_every_schema_is_named():
    for module in (snapshot, max_batch, sweep, stacks, doctor):
        assert f"\n## `{module.SCHEMA}`\n" in text("json.md")


def test_no_path_of_a_machine():
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        assert "/root/" not in path.read_text()


def anchors(page):
    """What GitHub makes of a page's headings; code blocks have none."""
    plain = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", plain, re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], ids=lambda path: path.name
)
def test_local_links_lead_somewhere(path):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", path.read_text()):
        page = path.parent / target if target else path
        assert page.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(page.read_text()), f"{path.name}: {target}#{anchor}"


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
