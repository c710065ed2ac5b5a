"""`--fail-on` and `--on-alert`, on runs played from frames."""

import json

import msgspec
import pytest

from dpwatch.cli.alerts import Alerts
from dpwatch.cli.errors import CommandError
from dpwatch.run.derive.summarize import summarize
from tests.frames import dp_run, played


@pytest.fixture
def run():
    """It has a warning, `master_imbalance`, and two more."""
    return summarize(played(list(dp_run(steps=10))))


def well(run):
    return msgspec.structs.replace(run, diagnoses=[])


@pytest.mark.parametrize(
    ("fail_on", "failing"),
    [
        (None, False),
        ("info", True),
        ("warning", True),
        ("critical", False),
        ("master_imbalance", True),
        ("oom, gil_bound", True),
        ("oom,critical", False),
    ],
)
def test_fail_on(run, fail_on, failing):
    alerts = Alerts(fail_on, None)
    alerts.see([well(run)])
    assert not alerts.failing
    alerts.see([run])
    alerts.see([well(run)])  # what has been, counts
    assert alerts.failing is failing


def test_unknown_words_are_refused():
    with pytest.raises(CommandError, match="--fail-on often"):
        Alerts("critical,often", None)


def test_a_command_at_each_new_diagnosis(run, tmp_path):
    told = tmp_path / "told"
    command = f"""(echo "$DPWATCH_ALERT_KIND $DPWATCH_ALERT_SEVERITY $DPWATCH_ALERT_RANKS
$DPWATCH_ALERT_RUN"; cat; echo) > {told}-$DPWATCH_ALERT_KIND-$$"""
    alerts = Alerts(None, command)
    for seen in (run, run, well(run), run):  # twice it has come up
        alerts.see([seen])
    alerts.close()
    files = sorted(tmp_path.glob("told-master_imbalance-*"))
    assert len(files) == 2
    words, run_id, diagnosis = files[0].read_text().split("\n", 2)
    assert (words, run_id) == ("master_imbalance warning 0", "run")
    assert json.loads(diagnosis)["kind"] == "master_imbalance"


def test_a_command_that_hangs_is_ended(run, monkeypatch):
    monkeypatch.setattr("dpwatch.cli.alerts.CLOSE_S", 0.0)
    alerts = Alerts(None, "exec cat /dev/zero > /dev/null")
    alerts.see([run])
    started = list(alerts._started)
    alerts.close()
    assert started
    assert all(process.returncode is not None for process in started)
