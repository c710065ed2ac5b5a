"""Hostile text of a training script, in everything that is printed: no escape gets through."""

import json

import msgspec
import pytest

from dpwatch.cli import main
from dpwatch.cli.alerts import Alerts
from dpwatch.cli.errors import CommandError
from dpwatch.cli.markdown import markdown
from dpwatch.cli.output import json_text, report, table
from dpwatch.run.derive.summarize import summarize
from dpwatch.run.model.snapshot import Diagnosis
from dpwatch.wire.messages import Bye, Transfer
from tests.frames import batch, collective, hello, played, step

BAD = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\n\u202ered\u2028\x00\x7f\U000e0041"


@pytest.fixture
def run():
    """One whose rank says BAD wherever it may choose."""
    said = batch(
        hello(2, devices=[BAD], kind=BAD, strategy=BAD, title=BAD, torch_version=BAD),
        *(step(i) for i in range(5)),
        *(collective(i, i, nbytes=8, ranks=1, at_ms=i, op=BAD, group=BAD) for i in range(5)),
        *(Transfer(i, BAD, 0, 0, 8, 1) for i in range(5)),
        Bye("failed", BAD),
        host=BAD,
    )
    bad = Diagnosis(BAD, "critical", [0], 3, BAD, evidence={BAD: BAD})
    return msgspec.structs.replace(summarize(played([said])), diagnoses=[bad])


@pytest.mark.parametrize("told", [report, table, markdown, json_text])
def test_nothing_printed_moves_the_terminal(run, told):
    text = told([run])
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "owned" in text


def test_json_is_the_same_to_a_program(run):
    (told,) = json.loads(json_text([run]))["runs"]
    assert (told["title"], told["hosts"], told["strategy"]) == (BAD, [BAD], BAD)


def test_an_alerts_command_gets_text_that_an_environment_can_hold(run, tmp_path):
    alerts = Alerts(None, f'printf %s "$DPWATCH_ALERT_TEXT" > {tmp_path}/told')
    alerts.see([run])
    alerts.close()
    told = (tmp_path / "told").read_text()
    assert "owned" in told
    assert told.isprintable()


def test_an_error_that_quotes_others_is_printable(monkeypatch, capsys):
    def fails(options):
        raise CommandError(f"ssh said {BAD}")

    monkeypatch.setattr("dpwatch.cli.watch.run", fails)
    assert main([]) == 2
    told = capsys.readouterr().err
    assert told.startswith("dpwatch: ssh said ")
    assert all(char.isprintable() or char == "\n" for char in told)
