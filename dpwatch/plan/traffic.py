"""Bytes that communication puts on the wire, by the textbook algorithms. Torch-free.

Everything here is modelled, never measured: the ring algorithms as in nccl-tests' PERFORMANCE.md
(https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md). A backend may differ (gloo's
reduce_scatter sends twice this).
"""

from __future__ import annotations

import functools

_ALL_REDUCE = frozenset({"all_reduce", "all_reduce_coalesced"})
_ALL_GATHER = frozenset({"all_gather", "all_gather_coalesced"})
_SPLIT = frozenset({"reduce_scatter", "reduce_scatter_coalesced", "all_to_all"})
_ROOTED = frozenset({"broadcast", "reduce", "gather", "scatter"})
_BUS_ONE = frozenset({"broadcast", "reduce"})
_MESSAGES = frozenset({"send", "recv"})
_SILENT = frozenset({"barrier", "monitored_barrier"})


@functools.lru_cache(maxsize=4096)
def wire_bytes(op: str, nbytes: int, ranks: int) -> int:
    """Bytes a rank sends for one collective by the ring algorithm, averaged over the group's ranks.

    With payload S, as in `wire.messages.Collective.nbytes`, and n ranks: all_reduce 2(n−1)/n S;
    all_gather (n−1) S, where S is the rank's own part; reduce_scatter and all_to_all (n−1)/n S,
    where S is the full input; broadcast and reduce travel along a chain in which every rank but one
    sends S; gather and scatter likewise move (n−1)/n of the payload; a barrier moves nothing. A
    message (`send`, `recv`) counts as its payload, once, in its one direction. An unknown op counts
    as its payload once (`bus_factor` returns None for it).

    Args:
        op: c10d's plain name.
        nbytes: Payload this rank passes in, bytes.
        ranks: Size of the group.

    Returns:
        Bytes sent, rounded down.

    Raises:
        ValueError: Fewer than one rank, or negative bytes.
    """
    _check(nbytes, ranks)
    if op in _MESSAGES:
        return nbytes
    if ranks == 1 or op in _SILENT:
        return 0
    if op in _ALL_REDUCE:
        return 2 * (ranks - 1) * nbytes // ranks
    if op in _ALL_GATHER:
        return (ranks - 1) * nbytes
    if op in _SPLIT or op in _ROOTED:
        return (ranks - 1) * nbytes // ranks
    return nbytes


def bus_factor(op: str, ranks: int) -> float | None:
    """The ratio busbw / algbw of nccl-tests, which makes busbw comparable with a link's speed.

    algbw is size / time, where the size of all_gather and reduce_scatter is the *full* array (n
    times `Collective.nbytes` for all_gather).

    Args:
        op: c10d's plain name.
        ranks: Size of the group.

    Returns:
        The factor, None for an op that has none (barrier) or is unknown.

    Raises:
        ValueError: Fewer than one rank.
    """
    _check(0, ranks)
    if op in _ALL_REDUCE:
        return 2 * (ranks - 1) / ranks
    if op in _ALL_GATHER or op in _SPLIT:
        return (ranks - 1) / ranks
    return 1.0 if op in _BUS_ONE or op in _MESSAGES else None


def _check(nbytes: int, ranks: int) -> None:
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, got {ranks}")
    if nbytes < 0:
        raise ValueError(f"bytes must not be negative, got {nbytes}")
