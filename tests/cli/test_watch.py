"""`dpwatch` without a screen: one look, and every way to be used wrong."""

import json
from importlib.util import find_spec

import msgspec
import pytest

from dpwatch.cli import watch
from dpwatch.cli.errors import CommandError
from dpwatch.cli.output import json_text, table
from dpwatch.run.derive.summarize import summarize
from dpwatch.run.model.snapshot import GpuProcess, HostGpu
from dpwatch.viewer.watcher import Watcher
from tests.frames import batch, dp_run, hello, played
from tests.hubs import has, rank, serving, until, watching
from tests.processes import dpwatch


def test_nothing_to_show():
    done = dpwatch("--once")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "dpwatch demo --gpus 4" in done.stderr
    done = dpwatch("--once", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["runs"] == []


def test_one_look_at_a_live_run():
    with serving() as hub, rank(hub.place) as send:
        for frame in list(dp_run(steps=5))[:-1]:
            send(frame)
        text = dpwatch("--once")
        seen = json.loads(dpwatch("--once", "--json").stdout)
    assert text.returncode == 0
    assert "vgpu:3" in text.stdout
    assert seen["schema"] == "dpwatch.summary/1"
    (run,) = seen["runs"]
    assert [r["device"] for r in run["ranks"]] == [f"vgpu:{d}" for d in range(4)]
    assert run["ranks"][0]["gpu"] == {"util": None, "temperature_c": None, "power_w": None}


def test_the_last_runs_are_shown_when_their_hubs_have_gone():
    for run_id in ("first", "second"):
        with serving(run_id) as hub, rank(hub.place) as send, watching() as watcher:
            for frame in dp_run(steps=5):
                send(msgspec.structs.replace(frame, run_id=run_id))
            until(watcher, has(run_id, state="finished"))
    assert dpwatch("--once").returncode == 3
    for options, shown in ((["--last"], 1), (["--last", "2"], 2), (["--last", "9"], 2)):
        done = dpwatch("--once", "--json", *options)
        assert done.returncode == 0
        runs = json.loads(done.stdout)["runs"]
        assert [run["steps"] for run in runs] == [5] * shown


def test_no_last_run():
    done = dpwatch("--last", "--once")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no run has been kept" in done.stderr


TORCH = find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not TORCH, reason="the demo asks for torch first")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--json"], "--once"),
        (["nonsense"], "demo"),
        (["--once", "extra"], "demo"),
        (["--last", "0"], "'0' is not a number of runs"),
        (["--last", "--web"], "--last"),
        (["demo", "--json", "--markdown"], "not allowed with"),
        ([], "terminal"),
        pytest.param(["demo"], "terminal", marks=needs_torch),
        (["demo", "--gpus", "0"], "--gpus 0"),
        (["demo", "--gpus", "many"], "--gpus"),
        (["demo", "--steps", "0"], "--steps 0"),
        (["demo", "--strategy", "magic"], "dp"),
        (["demo", "--strategy", ","], "dp"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments, says):
    done = dpwatch(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert says in done.stderr.splitlines()[-1]


def test_a_terminal_that_cannot_draw_is_told_so(monkeypatch):
    monkeypatch.setattr(watch, "on_terminal", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(CommandError, match="TERM=dumb"):
        watch.require_terminal()


def test_an_unusable_runtime_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for command in (["--once"], *([["demo", "--headless"]] if TORCH else [])):
        done = dpwatch(*command, DPWATCH_RUNTIME_DIR=str(tmp_path / "file" / "x"))
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "DPWATCH_RUNTIME_DIR" in done.stderr


def test_help_and_version():
    assert "examples:" in dpwatch("--help").stdout
    assert "examples:" in dpwatch("demo", "--help").stdout
    assert dpwatch("--version").stdout.startswith("dpwatch ")


def test_the_json_is_the_struct_field_by_field():
    run = summarize(played(dp_run()))
    seen = json.loads(json_text([run]))["runs"][0]
    assert seen == msgspec.to_builtins(run)


def test_text_from_ranks_is_no_escape_sequence():
    run = summarize(played([batch(hello(title="\x1b[2J\x07evil"))]))
    assert "\x1b" not in table([run])
    assert "evil" in table([run])


def test_a_wrong_argument_is_one_line():
    for arguments in (("demo", "--gpu-mem", "lots"), ("demo", "--gpus", "many"), ("nonsense",)):
        done = dpwatch(*arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("dpwatch")


GPUS = (
    HostGpu(0, "A100\x1b[31m", 0.5, None, 99.6, 1 << 30, 2 << 30, (GpuProcess(7, "p\x9by"),)),
    HostGpu(1, "T4", host="node1"),
)


def test_gpus_where_no_run_is(capsys):
    watcher = Watcher(places=tuple, gpus=lambda: GPUS)
    assert not watch.tell(watcher, as_json=False)
    text = capsys.readouterr().out.splitlines()
    assert [line.split() for line in text] == [
        ["GPU", "load", "used", "MiB", "of", "MiB", "°C", "W"],
        ["0", "A100�[31m", "50%", "1024.0", "2048.0", "–", "100"],
        ["p�y", "7:", "–", "MiB"],
        ["node1", "1", "T4", "–", "–", "–", "–", "–"],
    ]
    assert not watch.tell(watcher, as_json=True)
    told = capsys.readouterr().out
    assert "\x9b" not in told
    first, second = json.loads(told)["gpus"]
    assert (first["util"], first["temperature_c"], first["host"]) == (0.5, None, "")
    assert first["processes"] == [{"pid": 7, "name": "p\x9by", "used_bytes": None}]
    assert (second["util"], second["used_bytes"], second["host"]) == (None, None, "node1")
    watcher.close()
