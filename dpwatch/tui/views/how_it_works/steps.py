"""What each strategy does in a step, in order, and which measurement belongs to it.

The trainer's `strategies/` have the algorithms themselves; this is a short form for the screen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shape = Literal["alone", "star", "exchange", "ring", "layers", "two rings", "stages"]
"""The diagram: nothing sent, one centre, everyone with everyone, a ring, layer by layer, two
groups, a model in two halves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step of an algorithm.

    Attributes:
        title: What happens, in a few words.
        where: On which devices, or from where to where.
        text: One more sentence.
        transfers: The kinds of copies between devices that make up this step.
        op: The collective that makes up this step.
        phase: The phase whose time includes this step.
    """

    title: str
    where: str
    text: str
    transfers: tuple[str, ...] = ()
    op: str = ""
    phase: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """A strategy's diagram and steps; `idea` is its summary."""

    shape: Shape
    idea: str
    steps: tuple[Step, ...]


_FORWARD = Step(
    title="forward",
    where="every device",
    text="each computes the loss of its own samples",
    phase="forward",
)
_BACKWARD = Step(
    title="backward",
    where="every device",
    text="each computes the gradients of its own loss",
    phase="backward",
)
_UPDATE = Step(
    title="update",
    where="every device",
    text="each applies the same update to its own copy, so all copies stay equal",
    phase="optimizer",
)
_UPDATE_OWN = Step(
    title="update its part",
    where="every device",
    text="each updates the parameters whose optimizer state it keeps",
    phase="optimizer",
)
_BROADCAST = Step(
    title="broadcast",
    where="owner → all others",
    text="each owner sends its updated parameters to all",
    op="broadcast",
)

_SINGLE = Scheme(
    shape="alone",
    idea="One device holds everything and sends nothing: the baseline for the others.",
    steps=(
        Step(title="forward", where="the device", text="the whole batch", phase="forward"),
        Step(title="backward", where="the device", text="all gradients", phase="backward"),
        Step(title="update", where="the device", text="all parameters", phase="optimizer"),
    ),
)
_DP = Scheme(
    shape="star",
    idea="One process, a thread per device; every byte leaves or enters device 0, "
    "so its load grows with the number of devices.",
    steps=(
        Step(
            title="scatter",
            where="device 0 → others",
            text="every device gets its samples",
            transfers=("scatter",),
        ),
        Step(
            title="replicate",
            where="device 0 → others",
            text="and a full copy of the parameters, again in every step",
            transfers=("replicate",),
        ),
        Step(
            title="forward",
            where="every device",
            text="in parallel threads, under one GIL",
            phase="forward",
        ),
        Step(
            title="gather",
            where="others → device 0",
            text="all outputs; device 0 alone computes the loss",
            transfers=("gather",),
        ),
        Step(
            title="scatter of the gradient",
            where="device 0 → others",
            text="the gradient of the loss with respect to each device's outputs",
            transfers=("scatter_grad",),
        ),
        Step(
            title="backward",
            where="every device",
            text="in parallel threads again",
            phase="backward",
        ),
        Step(
            title="reduce",
            where="others → device 0",
            text="all gradients are summed on device 0",
            transfers=("reduce",),
        ),
        Step(
            title="update",
            where="device 0",
            text="only there; the copies on the others are discarded",
            phase="optimizer",
        ),
    ),
)


def _server(shape: Shape, idea: str, server: str, update: str) -> Scheme:
    return Scheme(
        shape=shape,
        idea=idea,
        steps=(
            _FORWARD,
            _BACKWARD,
            Step(
                title="push",
                where=f"workers → {server}",
                text="gradients are summed as they arrive",
                transfers=("push",),
            ),
            Step(title="update", where=server, text=update, phase="optimizer"),
            Step(
                title="pull",
                where=f"{server} → workers",
                text="every worker gets the updated parameters",
                transfers=("pull",),
            ),
        ),
    )


_DDP = Scheme(
    shape="ring",
    idea="Every rank holds everything; gradients are summed around a ring, bucket by bucket, "
    "during backward: a rank sends 2(N−1)/N of the gradients, for any N.",
    steps=(
        _FORWARD,
        _BACKWARD,
        Step(
            title="all-reduce",
            where="around the ring",
            text="reduce-scatter (each rank ends up with 1/N of the sums), then all-gather",
            op="all_reduce",
        ),
        _UPDATE,
    ),
)
_DDP_MP = Scheme(
    shape="stages",
    idea="A model too large for one device is split over two; each pair is one data-parallel rank.",
    steps=(
        Step(
            title="activations hop",
            where="first half → second half",
            text="forward continues on the pair's second device",
            transfers=("activation",),
        ),
        Step(title="forward", where="both halves", text="one after the other", phase="forward"),
        Step(
            title="gradients hop back",
            where="second half → first half",
            text="backward goes the other way",
            transfers=("activation_grad",),
        ),
        Step(title="backward", where="both halves", text="in reverse order", phase="backward"),
        Step(
            title="all-reduce",
            where="between the pairs",
            text="each half's gradients, with the same half of the other pairs",
            op="all_reduce",
        ),
        _UPDATE,
    ),
)
_ZERO1 = Scheme(
    shape="ring",
    idea="Like ddp, but a rank keeps optimizer state only for its own part of the parameters.",
    steps=(
        _FORWARD,
        _BACKWARD,
        Step(
            title="all-reduce",
            where="around the ring",
            text="every rank gets all summed gradients",
            op="all_reduce",
        ),
        _UPDATE_OWN,
        _BROADCAST,
    ),
)
_ZERO2 = Scheme(
    shape="ring",
    idea="A gradient is summed on its owner, the rank that needs it, and kept nowhere else.",
    steps=(
        _FORWARD,
        _BACKWARD,
        Step(
            title="reduce",
            where="all → owner",
            text="each gradient is summed on its owner; the others drop theirs",
            op="reduce",
        ),
        _UPDATE_OWN,
        _BROADCAST,
    ),
)


def _sharded(idea: str, more: tuple[Step, ...] = (), shape: Shape = "layers") -> Scheme:
    group = "its group" if more else "all"
    return Scheme(
        shape=shape,
        idea=idea,
        steps=(
            Step(
                title="gather",
                where=f"by layer, from {group}",
                text="a layer's parameters are gathered just before use, in forward and (if they "
                "were dropped) again in backward",
                op="all_gather",
            ),
            Step(
                title="use in forward",
                where="every device",
                text="then drop what is not in its shard",
                phase="forward",
            ),
            Step(
                title="use in backward",
                where="every device",
                text="the layers in reverse order",
                phase="backward",
            ),
            Step(
                title="reduce-scatter",
                where=f"by layer, in {group}",
                text="each rank keeps the sums of its own shard's gradients",
                op="reduce_scatter",
            ),
            *more,
            _UPDATE_OWN,
        ),
    )


_ZERO3_IDEA = "Everything is sharded: a layer is whole only while it computes."
SCHEMES: dict[str, Scheme] = {
    "single": _SINGLE,
    "dp": _DP,
    "ps-gpu0": _server(
        "star",
        "Device 0 is also the server: gradients go to it, parameters come from it.",
        "device 0",
        "the only optimizer",
    ),
    "ps-cpu": _server(
        "star",
        "The host is the server: devices are even, and all bytes cross the host's link.",
        "host",
        "in host memory, which holds the only optimizer",
    ),
    "ps-sharded": _server(
        "exchange",
        "Every device serves a part of the parameters: no centre, and traffic per device "
        "hardly grows with N.",
        "owners",
        "each device updates its own part",
    ),
    "ddp": _DDP,
    "ddp-mp": _DDP_MP,
    "zero1": _ZERO1,
    "zero2": _ZERO2,
    "zero3": _sharded(_ZERO3_IDEA),
    "fsdp1": _sharded(_ZERO3_IDEA + " A wrapped module's parameters are one flat parameter."),
    "fsdp": _sharded(_ZERO3_IDEA + " Each parameter is split separately."),
    "hsdp": _sharded(
        "Sharded inside a group, replicated across groups: gathers stay within the group.",
        (
            Step(
                title="all-reduce",
                where="across the groups",
                text="each shard's gradient sums, with the same shard of the other groups",
                op="all_reduce",
            ),
        ),
        shape="two rings",
    ),
}
"""By strategy."""
