"""Merging the records counts of two hubs that each missed some records."""

import msgspec
import pytest

from dpwatch.hub.cluster.merge import merge
from tests.frames import batch, hello, played, step


def knowing(*missing):
    """A hub's state of a rank that sent eight frames of one record, without some of them."""
    frames = [batch(hello(), seq=0), *(batch(step(i), seq=i + 1) for i in range(7))]
    sent = [msgspec.structs.replace(frame, sent=i) for i, frame in enumerate(frames)]
    return played([frame for i, frame in enumerate(sent) if i not in missing])


@pytest.mark.parametrize(
    ("head", "node", "lost"),
    [((), (), 0), ((2,), (), 0), ((), (3, 4), 0), ((2,), (3, 4), 0), ((2,), (2, 4), 1)],
)
def test_only_records_that_both_hubs_missed_are_lost(head, node, lost):
    state, part = knowing(*head), knowing(*node)
    assert [each.ranks[0].missed for each in (state, part)] == [len(head), len(node)]
    for _ in range(2):
        merge(state, part, "here")
        rank = state.ranks[0]
        assert (rank.missed, rank.received.missing) == (lost, lost)
        assert rank.taken + rank.missed == 8
