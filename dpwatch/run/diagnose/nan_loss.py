"""`nan_loss`: the loss is NaN or infinite.

Rule: the last loss reported by a rank is nan or infinite. A rank is called the first only if all
others that report a loss reported a finite one for the step of its own bad loss, or a later one: in
short steps the probe doesn't read every loss, and not the same steps in all ranks.
"""

from __future__ import annotations

from dpwatch.run.diagnose.finding import Finding
from dpwatch.run.model.ranks import name_ranks
from dpwatch.run.model.snapshot import Run
from dpwatch.run.state.parts import BadLoss, RankState
from dpwatch.run.state.run_state import RunState


def rule(run: Run, state: RunState) -> Finding | None:
    """Fires on the ranks whose loss is NaN or infinite."""
    bad = {r: rank.bad_loss for r, rank in state.ranks.items() if rank.bad_loss is not None}
    if not bad:
        return None
    since = min(bad.values(), key=lambda loss: loss.step)
    first = _first(bad, state.ranks)
    blame = ""
    if first is not None and len(state.ranks) > 1:
        blame = f" Rank {first} was first: look at its batch of that step."
    good_step, good_loss = since.before or (None, None)
    good = "" if good_loss is None else f" (it was {good_loss:.4g} in step {good_step})"
    return Finding(
        kind="nan_loss",
        severity="critical",
        ranks=sorted(bad),
        text=f"The loss of {name_ranks(sorted(bad))} has been {since.value} since step "
        f"{since.step}{good}.{blame} Training since then is lost: go back to the last checkpoint. "
        "Lower the learning rate, clip gradients, look for log(0) or 0/0 "
        "(torch.autograd.set_detect_anomaly); with fp16 use a GradScaler or bf16.",
        evidence={
            "step": since.step,
            "value": since.value,
            "first_rank": first,
            "step_before": good_step,
            "loss_before": good_loss,
        },
        began=since.step,
    )


def _first(bad: dict[int, BadLoss], ranks: dict[int, RankState]) -> int | None:
    """The rank where it began, if that is certain."""
    first = min(bad, key=lambda r: bad[r].step)
    others = (rank for r, rank in ranks.items() if r != first)
    if all(_was_good(rank, bad[first].step) for rank in others):
        return first
    return None


def _was_good(rank: RankState, step: int) -> bool:
    """Whether its loss was still finite in `step`, if it reports any."""
    if rank.good_loss is None:
        return rank.bad_loss is None
    return rank.good_loss[0] >= step
