"""The history of diagnoses, with their times."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dpwatch.run.model.snapshot import SEVERITIES, Alert, Diagnosis

KEPT = 100


def kept(alerts: Sequence[Alert], now: Sequence[Diagnosis], wall_s: float) -> list[Alert]:
    """The history, updated with the active diagnoses.

    An alert continues while its kind is active for any of the same ranks; for others it is a new
    one.

    Args:
        alerts: The history so far, oldest first.
        now: Active diagnoses.
        wall_s: The wall clock now.

    Returns:
        The history, at most `KEPT` long; the oldest resolved alerts are dropped.
    """
    left = {diagnosis.kind: diagnosis for diagnosis in now}
    new = []
    for alert in alerts:
        diagnosis = left.get(alert.kind) if alert.ended_s is None else None
        if alert.ended_s is not None:
            new.append(alert)
        elif diagnosis is None or (alert.ranks and not {*alert.ranks} & {*diagnosis.ranks}):
            new.append(msgspec.structs.replace(alert, ended_s=wall_s))
        else:
            del left[alert.kind]
            new.append(_continued(alert, diagnosis))
    new += [_begun(diagnosis, wall_s) for diagnosis in left.values()]
    over = len(new) - KEPT
    return new if over <= 0 else [a for i, a in enumerate(new) if i >= over or a.ended_s is None]


def _begun(diagnosis: Diagnosis, wall_s: float) -> Alert:
    return Alert(
        diagnosis.kind,
        diagnosis.severity,
        diagnosis.ranks,
        diagnosis.since_step,
        diagnosis.text,
        wall_s,
    )


def _continued(alert: Alert, diagnosis: Diagnosis) -> Alert:
    worst = max(alert.severity, diagnosis.severity, key=SEVERITIES.index)
    return msgspec.structs.replace(
        alert,
        severity=worst,
        ranks=diagnosis.ranks,
        since_step=diagnosis.since_step,
        text=diagnosis.text,
    )
