"""The ledger under sharding strategies against theory and the allocator's peak: two ranks."""

import pytest

from tests.probe.ranks.sharded_rank import CASES

pytestmark = pytest.mark.dist
PARAM_BYTES = 4 * (32 * 40 + 2 * 97 * 40 + 2 * 40 + 4 * (4 * 40 + 40 + 160 + 40 + 12 * 40 * 40))
BLOCK_BYTES = 4 * (4 * 40 + 40 + 160 + 40 + 12 * 40 * 40)


@pytest.fixture(scope="module")
def reports(run_ranks):
    return run_ranks("sharded_rank.py")


@pytest.fixture(params=CASES)
def facts(request, reports):
    return [report[request.param] for report in reports]


def test_each_rank_holds_what_theory_predicts(facts):
    for rank in facts:
        assert len(rank["records"]) == 4
        for record in rank["records"]:
            held = record["current"]
            assert {name: held[name] for name in rank["planned"]} == rank["planned"]
            assert held["gathered"] == held["temp"] == 0


def test_the_peak_is_the_allocators(facts):
    """In every step but the last, whose later frees are not seen."""
    for rank in facts:
        begins = sum(rank["planned"].values())
        for record in rank["records"][:-1]:
            least, most = rank["rises"][record["step"]]
            assert 0.99 * (begins + least) <= record["peak_bytes"] <= 1.01 * (begins + most)


def test_the_model_is_counted_whole(facts):
    assert {rank["elements"] for rank in facts} == {PARAM_BYTES // 4}


def test_every_storage_was_tracked(facts):
    assert {rank["note"] for rank in facts} == {"closed"}


def test_parameters_kept_gathered_add_the_whole_model_to_the_peak(reports):
    for report in reports:
        kept, dropped = (
            max(record["peak"]["gathered"] for record in report[name]["records"])
            for name in ("fsdp kept", "fsdp")
        )
        assert kept >= PARAM_BYTES
        assert BLOCK_BYTES < dropped <= kept - BLOCK_BYTES
