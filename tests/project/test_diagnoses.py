"""What docs/json.md says of diagnoses is what the rules do."""

import ast
import re
from collections import defaultdict
from itertools import chain
from pathlib import Path

import pytest

from dpwatch.run import diagnose
from dpwatch.run.derive import doing
from dpwatch.run.derive.rank_metrics import IN_STEP
from dpwatch.run.diagnose import (
    comm_bound,
    cpu_oversubscribed,
    desync,
    finding,
    gil_bound,
    hang,
    input_bound,
    master_imbalance,
    meeting,
    memory_growth,
    oom_risk,
    out_of_step,
    overlap_poor,
    rank_lost,
    straggler,
    uneven,
    wait_in_turn,
)
from dpwatch.run.state.step_offsets import STEADY_STEPS

PAGE = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
RULES = Path(diagnose.__file__).parent


def section(kind):
    """What is said of a kind, without the table of its evidence, and that table's lines."""
    _, found, rest = PAGE.partition(f"\n#### `{kind}`\n")
    assert found, f"docs/json.md has no section {kind}"
    said, _, table = rest.partition("\n####")[0].partition(
        "\n| evidence | type | null when | meaning |\n"
    )
    return " ".join(said.split()), table.splitlines()[1:]


FLAT = " ".join(PAGE.split())
BY_KIND = dict(zip(diagnose.KINDS, (*diagnose.RULES, *diagnose.STATE_RULES), strict=True))
HANGS = re.findall(
    r"^\| (.*) \| (.*) \|$",
    PAGE.split("\n| the rank | critical after |\n|---|---|\n")[1].partition("\n\n")[0],
    re.M,
)


def test_every_kind_has_one_row_and_one_section():
    listed = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\) \|", PAGE, re.M)
    assert sorted(listed) == sorted((kind, kind) for kind in diagnose.KINDS)
    assert sorted(re.findall(r"^#### `(\w+)`$", PAGE, re.M)) == sorted(diagnose.KINDS)


def emitted():
    """By kind, the keys of the dictionaries that its rules' functions build."""
    found = defaultdict(set)
    for path in RULES.glob("*.py"):
        tree = ast.parse(path.read_text())
        words = [node for node in ast.walk(tree) if isinstance(node, ast.keyword)]
        kinds = {word.value.value for word in words if word.arg == "kind"}
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        for node in chain.from_iterable(map(ast.walk, functions)):
            for kind in kinds:
                found[kind] |= {key.value for key in keys(node) if isinstance(key, ast.Constant)}
    return found


def keys(node):
    """What a dictionary is built with, or given later."""
    if isinstance(node, ast.Dict):
        return node.keys
    is_given = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
    return [node.slice] if is_given else []


@pytest.mark.parametrize("kind", diagnose.KINDS)
def test_evidence_is_named_in_full_and_nothing_else(kind):
    _, table = section(kind)
    named = re.findall(r"^\| `(\w+)` \|", "\n".join(table), re.M)
    assert sorted(named) == sorted(emitted()[kind])


def percent(share):
    return f"{share * 100:g} %"


def mebibytes(nbytes):
    return f"{nbytes / (1 << 20):g} MiB"


def seconds(ns):
    return f"{ns / 1e9:g} s"


def milliseconds(ns):
    return f"{ns / 1e6:g} ms"


UNEVEN = (f"{uneven.RATIO} ×",)
FIGURES = {
    "rank_lost": (seconds(rank_lost.UNEXPLAINED_NS),),
    "desync": (
        f"{out_of_step.PASSED_STEPS} steps beyond",
        f"for {STEADY_STEPS} steps, after {STEADY_STEPS} in step",
        seconds(desync.STOPPED_NS),
    ),
    "hang": (
        f"{seconds(hang.LEAST_NS)} and {hang.LEAST_STEPS} median steps",
        f"before {hang.STARTED} steps are done: {seconds(hang.STARTING_NS)}",
        f"{meeting.PATIENCE_S:g} s ({seconds(meeting.SURE_NS)}",
    ),
    "straggler": (
        percent(straggler.CONSTANCY),
        "{} ({}, {}, … {}) steps".format(*(straggler.SIZES[at] for at in (0, 1, 2, -1))),
        percent(straggler.LEAST_SHARE),
        milliseconds(straggler.LEAST_NS),
        f"{straggler.CROWDS:g} × the mean wait for a core",
        f"{straggler.CLOCK_ERRORS} × what hosts' clocks",
        f"{milliseconds(straggler.LEAST_SUM_NS)} in sum",
        f"{straggler.FEW} times",
        f"{straggler.OUTLYING:g} × the usual gap",
        f"warning from {percent(straggler.WARNING)}",
    ),
    "wait_in_turn": (
        f"{wait_in_turn.LEAST_STEPS} (at most {wait_in_turn.MOST_STEPS}) steps",
        percent(wait_in_turn.WORTH_SAYING),
        milliseconds(wait_in_turn.LEAST_NS),
        f"{milliseconds(wait_in_turn.LEAST_SUM_NS)} in sum",
        f"warning from {percent(wait_in_turn.WARNING)}",
    ),
    "oom_risk": (percent(oom_risk.RISKY), f"critical from {percent(oom_risk.CRITICAL)}"),
    "master_imbalance": (
        *UNEVEN,
        f"{master_imbalance.TRAFFIC_RATIO} ×",
        f"{IN_STEP} steps of each other",
        f"critical from {percent(uneven.CRITICAL_SHARE)}",
    ),
    "memory_imbalance": (
        *UNEVEN,
        mebibytes(uneven.LEAST_BYTES),
        mebibytes(uneven.LEAST_PROCESS_BYTES),
        f"warning from {percent(uneven.WARNING_SHARE)}",
    ),
    "memory_growth": (
        f"first {memory_growth.SETTLED_STEP} steps",
        percent(memory_growth.GROWTH),
        mebibytes(memory_growth.LEAST_BYTES),
        mebibytes(memory_growth.LEAST_RSS_BYTES),
        f"{memory_growth.LEAST_SAMPLES} samples and {memory_growth.LEAST_STEPS} steps",
        f"{memory_growth.PROPORTION} ×",
        f"{memory_growth.SOON} × the steps",
    ),
    "gil_bound": (percent(gil_bound.WORTH_SAYING), f"warning from {percent(gil_bound.WARNING)}"),
    "input_bound": (
        percent(input_bound.WORTH_SAYING),
        f"{input_bound.LEAST_MS} ms",
        f"warning from {percent(input_bound.WARNING)}",
    ),
    "comm_bound": (
        percent(comm_bound.WORTH_SAYING),
        f"many small calls from {percent(comm_bound.HINTS['many_calls'])}",
        f"repeated exchanges from {percent(comm_bound.HINTS['repeated'])}",
        f"warning from {percent(comm_bound.WARNING)}",
    ),
    "overlap_poor": (
        percent(overlap_poor.EXPOSED),
        percent(overlap_poor.WORTH_SAYING),
        percent(overlap_poor.HIDEABLE),
    ),
    "cpu_oversubscribed": (
        percent(cpu_oversubscribed.WORTH_SAYING),
        f"warning from {percent(cpu_oversubscribed.WARNING)}",
    ),
}
"""By kind, what its section has to say for the rule's constants."""


def says(text, figure):
    """Whether a figure is there, and not as the end of another one."""
    return re.search(rf"(?<![\d.]){re.escape(figure)}", text) is not None


@pytest.mark.parametrize("kind", FIGURES)
def test_figures_are_the_rules_own(kind):
    said, _ = section(kind)
    assert [figure for figure in FIGURES[kind] if not says(said, figure)] == []


def limit(words):
    """What is said of the row of that table which has these words."""
    (found,) = (cell for rank, cell in HANGS if words in rank)
    return found


def test_how_bad_a_hang_is():
    for words, *waits in (
        ("a lock", "lock"),
        ("a pipe, a socket, a file", "pipe", "socket", "file", "poll", "core"),
        ("sleeps", "sleep"),
        ("a process; a disk", "process", "disk"),
    ):
        assert {f"{doing.LIMITS_S[each]:g} s" for each in waits} == {limit(words)}
    for words, limit_s in (
        ("data loader", doing.LOADER_LIMIT_S),
        ("checkpoint", doing.CHECKPOINT_LIMIT_S),
        ("native call", doing.NATIVE_LIMIT_S),
        ("runs Python", doing.BUSY_LIMIT_S),
        ("no rank has done a step yet", doing.STARTING_LIMIT_S),
    ):
        assert limit(words) == f"{limit_s:g} s"
    group = limit("a group is made")
    assert group.startswith(f"{doing.STARTING_LIMIT_S:g} s (a note until {meeting.WARNING_S:g} s)")
    assert f"up to {doing.OVERCOME} times as long" in FLAT
    assert f"at most for {hang.ALONE_CRITICAL_S:g} s" in FLAT


def test_what_is_told_early_and_for_how_long():
    early = [kind for kind, rule in BY_KIND.items() if rule in diagnose.EARLY]
    (said,) = re.findall(
        r"Before (\d+) steps are done, only ([^.]*) are reported\. [^.]* from (\d+) steps on", FLAT
    )
    assert (int(said[0]), int(said[2])) == (diagnose.MIN_STEPS, finding.SETTLED_STEPS)
    assert sorted(re.findall(r"`(\w+)`", said[1])) == sorted(early)
    assert f"silent for {seconds(diagnose.PATIENCE_NS)}; `oom` and `rank_lost`" in FLAT
    assert {"oom", "rank_lost"} == diagnose.ENDS
