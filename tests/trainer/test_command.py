"""`python -m dpwatch.trainer` and torchrun, as used in a shell."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from dpwatch.trainer.__main__ import main

from .support import Watched


@pytest.mark.dist
def test_strategies_train_in_turn_and_leave_nothing_behind(trainer, tmp_path):
    code, out, err = trainer("--strategy", "dp,ddp", "--gpus", "2", "--steps", "3").finish()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("dp     step 1/3  loss 4.")
    assert lines[-1].startswith("ddp    step 3/3  loss ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.dist
@pytest.mark.parametrize(("signum", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_step_ends_all_processes(trainer, tmp_path, signum, expected):
    process = trainer("--strategy", "ddp", "--gpus", "3", "--steps", "none")
    assert process.first_line().startswith("ddp")
    watched = Watched([process.process.pid, *process.descendants()])
    os.killpg(process.process.pid, signum)
    code, _, err = process.finish()
    assert (code, err) == (expected, "")
    assert watched.all_end()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.dist
@pytest.mark.parametrize("strategy", ["dp", "ddp"])
def test_a_killed_launcher_ends_everything(trainer, tmp_path, strategy):
    process = trainer("--strategy", strategy, "--gpus", "2", "--steps", "none")
    assert process.first_line().startswith(strategy)
    watched = Watched(process.descendants())
    process.process.kill()
    assert process.finish()[2] == ""
    assert watched.all_end()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.dist
def test_a_killed_fork_server_ends_the_ranks(trainer):
    process = trainer("--strategy", "ddp", "--gpus", "2", "--steps", "none")
    assert process.first_line().startswith("ddp")
    server, *ranks = process.descendants()
    watched = Watched(ranks)
    os.kill(server, signal.SIGKILL)
    code, _, err = process.finish()
    assert code == 1
    assert err.startswith("dpwatch.trainer: ")
    assert len(err.splitlines()) == 1
    assert watched.all_end()


@pytest.mark.dist
def test_ctrl_c_while_torch_is_being_imported_ends_at_once(trainer):
    process = trainer("--strategy", "ddp", "--gpus", "2")
    while not process.server_started():
        assert process.process.poll() is None
    (server,) = process.descendants()
    watched = Watched([server])
    os.killpg(process.process.pid, signal.SIGINT)
    code, out, err = process.finish()
    assert (code, out, err) == (130, "", "")
    assert watched.all_end()


@pytest.mark.dist
@pytest.mark.parametrize("debug", [False, True])
def test_a_failure_is_one_line_and_its_traceback_only_when_asked_for(trainer, monkeypatch, debug):
    monkeypatch.setenv("DPWATCH_DEBUG", "1" if debug else "0")
    code, _, err = trainer("--strategy", "raises", "--gpus", "2").finish()
    assert code == 1
    assert err.splitlines()[-1] == "dpwatch.trainer: rank 1: RuntimeError: the cooling has failed"
    assert (len(err.splitlines()) > 1) is debug
    assert ("Traceback" in err) is debug


@pytest.mark.dist
@pytest.mark.slow
def test_torchruns_ranks_train(trainer):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
                "dpwatch.trainer")  # fmt: skip
    process = trainer("--strategy", "ddp", "--steps", "3", command=torchrun)
    code, out, err = process.finish()
    assert code == 0, err
    assert [line.split()[2] for line in out.splitlines()] == ["1/3", "3/3"]


@pytest.mark.dist
def test_a_port_in_use_is_one_line_that_says_what_to_do(trainer, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        port = str(taken.getsockname()[1])
        for name, value in (rank | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items():
            monkeypatch.setenv(name, value)
        code, out, err = trainer("--strategy", "ddp", "--steps", "1").finish()
    assert (code, out) == (1, "")
    assert f"port {port} is in use" in err
    assert "--standalone" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--strategy", "zero9"], "unknown strategy 'zero9'; choose from: single, dp, ps-gpu0"),
        (["--gpus", "0"], "--gpus 0 is too small; give at least 1"),
        (["--run-id", "a"], "--run-id has 1 ids for 2 strategies; give one for each"),
        (["--d-model", "100000", "--layers", "96"], "reduce --d-model, --layers"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(capsys, arguments, line):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dpwatch.trainer: ")
    assert line in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--strategy", "dp"], "run python -m dpwatch.trainer --strategy dp --gpus 2"),
        (["--strategy", "single"], "single uses one process, but torchrun started 2"),
        (["--strategy", "ddp", "--gpus", "3"], "--gpus 3 contradicts torchrun's 2 ranks"),
        (["--strategy", "dp,ddp"], "name one strategy"),
    ],
)
def test_what_torchrun_cannot_run_is_one_line_and_exit_code_2(capsys, monkeypatch, arguments, line):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert line in err
    assert len(err.splitlines()) == 1


def test_help_has_an_example_and_every_strategy(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert "python -m dpwatch.trainer --strategy dp,ddp --gpus 4" in out
    assert "nn.DataParallel" in out
