"""The harness finds harm where there is some, and says so in a way that helps."""

import contextlib
import itertools
import re
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.harmless import endurance, op_worker, ops, page, zoo
from tests.harmless.op_cases import Case, all_cases
from tests.harmless.rows import BROKEN, DIFFERS, NOT_RUN, SAME, VARIES, Report, Row, wanted
from tests.harmless.script_run import Outcome
from tests.harmless.shape import ZOO, all_shapes
from tests.harmless.step_kinds import ProbeFailed, Surroundings

SHAPES = {shape.name: shape for shape in all_shapes()}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- operators ----------------------------------------------------------------------------------


def case(name):
    return next(each for each in all_cases() if each.name == name)


def results(a_case, *, probed):
    told = op_worker._run(a_case, probed=probed, detailed=True)
    assert "failed" not in told
    return told


def test_a_probe_is_there_in_both_kinds_of_steps_and_memory_is_sampled():
    from dpwatch.probe.steps.lanes import here

    for kind, sampled_out in (("sampled", False), ("unsampled", True)):
        surroundings = Surroundings(probed=True)
        assert surroundings.run(kind, lambda body: here.lane.sampled_out) is sampled_out
        assert surroundings.memory_sampled


def test_without_a_probe_there_is_none():
    from dpwatch.probe.steps.lanes import here

    assert Surroundings(probed=False).run("sampled", lambda body: here.lane) is None


def test_a_probe_that_turns_itself_off_proves_nothing():
    surroundings = Surroundings(probed=True)
    with pytest.raises(ProbeFailed, match="broken"):
        surroundings.run("sampled", lambda body: surroundings.watched.fail(OSError("broken")))


class Passive(TorchDispatchMode):
    """Changes nothing itself; ATen computes otherwise under it."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return op(*args, **(kwargs or {}))


def test_a_mode_on_the_dispatchers_stack_is_found(monkeypatch):
    """As a harmful probe would: it pushes a mode for the time of the work."""
    run = Surroundings.run

    def harmful(self, kind, work):
        def under_mode(body):
            with Passive():
                return work(body)

        return run(self, kind, under_mode)

    prod = case("prod/float32")
    plain = results(prod, probed=False)
    monkeypatch.setattr(Surroundings, "run", harmful)
    row = ops._row("prod/float32", plain, results(prod, probed=False))
    assert row.verdict == DIFFERS
    assert "numbers differ, the first at" in row.detail[0]
    assert row.command.endswith("-m tests.harmless ops/prod/float32")


def test_what_varies_without_the_probe_is_told_as_that(monkeypatch):
    runs = ({"random": {"sampled": [f"x{n}"], "unsampled": ["y"]}} for n in itertools.count())
    monkeypatch.setattr(ops, "_results", lambda _, names, *more: next(runs) if names else {})
    (row,) = ops._look_closer(["random"], next(runs))
    assert (row.verdict, row.note) == (VARIES, "1 of 2 samples differ without the probe too")


def test_what_warns_raises_or_draws_is_part_of_an_outcome():
    def raises(body):
        raise ValueError("no 0x7f0012345678")

    def warns(body):
        import warnings

        warnings.warn("careful", stacklevel=1)

    a_case = Case("x", lambda: [raises, warns, lambda body: torch.rand(1)])
    told = results(a_case, probed=False)["sampled"]
    assert any("ValueError: no 0x…" in line for line in told[0])
    assert any("UserWarning: careful" in line for line in told[1])
    assert told[0] != told[2]


def test_the_quick_part_names_cases_that_there_are():
    there = {name.rpartition("/")[0] for name in (each.name for each in all_cases())}
    assert there >= ops.QUICK_OPS


# -- scripts ------------------------------------------------------------------------------------


def outcome(**changed):
    facts = {"code": 0, "out": ["a", "b"], "err": [], "said": [], "files": {"x": "1"}, "steps": 3}
    return Outcome(**{**facts, **changed})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"code": 1}, "exit code: 0 without, 1 with"),
        ({"out": ["a", "c"]}, "stdout: 2 lines differ"),
        ({"err": ["Traceback"]}, "stderr: 1 lines differ"),
        ({"files": {}}, "file x: 1 without, None with"),
    ],
)
def test_a_script_that_notices(changed, told, monkeypatch):
    plain, probed = outcome(steps=None), outcome(**changed)
    runs = {False: plain, True: probed}
    monkeypatch.setattr(zoo.script_run, "run", lambda shape, place, probed: runs[probed])
    row = zoo.compare(SHAPES["plain"])
    assert row.verdict == DIFFERS
    assert told in row.detail
    assert "3 steps seen" in row.note


def test_a_script_that_does_the_same_and_one_that_never_does(monkeypatch):
    monkeypatch.setattr(zoo.script_run, "run", lambda *_, **__: outcome())
    assert zoo.compare(SHAPES["plain"]).verdict == SAME
    runs = iter([outcome(out=["1"]), outcome(out=["2"]), outcome(out=["3"])])
    monkeypatch.setattr(zoo.script_run, "run", lambda *_, **__: next(runs))
    assert zoo.compare(SHAPES["plain"]).verdict == VARIES


def test_a_script_that_does_not_run_shows_nothing(monkeypatch):
    monkeypatch.setattr(zoo.script_run, "run", lambda *_, **__: outcome(code=2, err=["no file"]))
    row = zoo.compare(SHAPES["plain"])
    assert (row.verdict, row.detail) == (BROKEN, ("exit code 2", "no file"))


def test_what_a_machine_lacks_is_listed(monkeypatch):
    monkeypatch.setattr("tests.harmless.shape.shutil.which", lambda _: None)
    row = zoo.compare(SHAPES["compile_first/inductor-10"])
    assert (row.verdict, row.note) == (NOT_RUN, "no program g++")


KNOWN = {"noticed", "variants", "exit", "command", "also", "needs", "order", "stderr", "stdin"}


def test_every_shape_says_what_it_is_about():
    assert len(SHAPES) > 100
    assert set(SHAPES) >= zoo.QUICK
    for shape in SHAPES.values():
        assert shape.about.endswith("."), shape.name
        assert shape.facts.keys() <= KNOWN, shape.name


# -- rows ---------------------------------------------------------------------------------------


def test_rows_are_chosen_by_name_or_by_part():
    assert wanted("ops/prod/float32", [])
    assert wanted("ops/prod/float32", ["ops/prod"])
    assert wanted("ops/prod/float32", ["zoo", "ops"])
    assert not wanted("ops/product/float32", ["ops/prod"])


def test_the_report_fails_if_any_row_differs(capsys):
    report = Report()
    report.add(Row(name="ops/add/float32", verdict=SAME))
    report.add(Row(name="zoo/notebook", verdict=NOT_RUN, note="no module ipykernel"))
    report.print_counts()
    assert not report.failed
    report.add(Row(name="zoo/plain", verdict=DIFFERS, detail=("stdout:", "-a", "+b")))
    assert report.failed
    told = capsys.readouterr().out
    assert "ops/add" not in told
    assert "not run  zoo/notebook" in told
    assert "-m tests.harmless zoo/plain" in told


def test_scripts_know_nothing_of_dpwatch():
    for path in ZOO.glob("*.py"):
        with contextlib.suppress(StopIteration):
            line = next(x for x in path.read_text().splitlines() if x.startswith("import dpwatch"))
            pytest.fail(f"{path.name}: {line}")
    assert Path(ZOO / "training.py").exists()


# -- the page -----------------------------------------------------------------------------------


def test_the_page_lists_the_zoo_and_names_only_rows_that_there_are():
    text = page.PAGE.read_text()
    assert text == page.updated(text), "run python -m tests.harmless.page"
    there = {f"zoo/{name}" for name in SHAPES} | {f"zoo/{s.script.stem}" for s in SHAPES.values()}
    there |= {f"long/{kind}" for kind in endurance.KINDS}
    named = set(re.findall(r"`((?:zoo|long)/[\w/-]+)`", text))
    assert named <= there
    told = {name for name in named if name.count("/") == 1}
    assert told >= {f"zoo/{shape.script.stem}" for shape in SHAPES.values()}


def test_the_page_says_how_many_operators_are_compared():
    assert f"{sum(1 for _ in all_cases()):,} rows" in page.PAGE.read_text()
