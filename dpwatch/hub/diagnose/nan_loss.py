"""`nan_loss`: the loss is no number any more.

Rule: the last loss that a rank told is nan or infinite.
"""

from __future__ import annotations

from dpwatch.hub.diagnose.finding import Finding, ranks_of
from dpwatch.hub.snapshot import Run
from dpwatch.hub.state import RunState


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on the ranks whose loss is no number."""
    bad = {r: rank.bad_loss for r, rank in state.ranks.items() if rank.bad_loss is not None}
    if not bad:
        return None
    first = min(bad, key=lambda r: bad[r].step)
    since = bad[first]
    one = len(state.ranks) > 1 and len({loss.step for loss in bad.values()}) > 1
    blame = f" Rank {first} was first: look at the batch it had there." if one else ""
    good = "" if since.before is None else f" (it was {since.before:.4g} before)"
    return Finding(
        kind="nan_loss",
        severity="critical",
        ranks=sorted(bad),
        text=f"The loss of {ranks_of(sorted(bad), start=False)} is {since.value} since step "
        f"{since.step}{good}: what is trained from here on is lost. Go back to the last "
        f"checkpoint; lower the learning rate, clip gradients, look for log(0) or 0/0 (torch."
        f"autograd.set_detect_anomaly), and with fp16 use a GradScaler or bf16.{blame}",
        evidence={
            "step": since.step,
            "value": since.value,
            "first_rank": first,
            "loss_before": since.before,
        },
        began=since.step,
    )
