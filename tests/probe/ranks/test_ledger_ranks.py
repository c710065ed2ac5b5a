"""The ledger under DDP and sharding, with observer and profiler: two gloo ranks."""

import pytest

pytestmark = pytest.mark.dist

BATCHNORM_BYTES = 2 * 256 * 4 + 8
LAYER_BYTES = (256 * 256 + 256) * 4


@pytest.fixture(scope="module")
def reports(run_ranks):
    return run_ranks("ledger_rank.py")


@pytest.fixture(params=[0, 1], ids=["rank 0", "rank 1"])
def report(request, reports):
    return reports[request.param]


DDP_CASES = {  # name: copies of the gradients in DDP's buckets
    "ddp": 1,
    "late": 1,
    "views": 0,
    "zero1": 1,
}


@pytest.mark.parametrize("case", DDP_CASES)
def test_what_ddp_holds_is_exact(report, case):
    facts = report[case]
    params = facts["param_bytes"]
    assert [record["step"] for record in facts["records"]] == (
        [4] if case == "late" else [1, 2, 3, 4]
    )
    for record in facts["records"]:
        for held in (record["peak"], record["current"]):
            assert held["params"] == held["grads"] == params
            assert held["buffers"] == DDP_CASES[case] * params + BATCHNORM_BYTES
            assert held["gathered"] == 0
            if case != "zero1":
                assert held["optimizer"] == 2 * params + 4 * facts["params"]


def test_zero1_shards_the_optimizer_state(reports):
    facts = [report["zero1"] for report in reports]
    for records in zip(*(fact["records"] for fact in facts), strict=True):
        state = sum(record["peak"]["optimizer"] for record in records)
        assert state == 2 * facts[0]["param_bytes"] + 4 * facts[0]["params"]


@pytest.mark.parametrize("case", DDP_CASES)
def test_the_peak_is_the_allocators(report, case):
    """Baseline by hand, and the profiler's allocator events on top."""
    facts = report[case]
    for record in facts["records"]:
        held = sum(record["current"][name] for name in ("params", "grads", "optimizer", "buffers"))
        rise, _ = facts["allocator_rises"][str(record["step"])]
        assert record["peak_bytes"] == pytest.approx(held + rise, rel=0.01)


def test_buckets_seen_are_the_buckets_logged(report):
    seen, logged = report["ddp"]["bucket_bytes"]
    assert seen == logged == report["ddp"]["param_bytes"]
    seen, logged = report["late"]["bucket_bytes"]  # rebuilt before anyone looked
    assert (seen, logged) == (0, report["late"]["param_bytes"])


@pytest.mark.parametrize("case", ["fsdp", "fsdp_kept"])
def test_shards_and_gathered_parameters_are_distinguished(report, case):
    facts = report[case]
    shards = facts["param_bytes"]
    assert shards == 4 * LAYER_BYTES // 2
    for record in facts["records"]:
        held = record["current"]
        assert held["params"] == held["grads"] == shards
        assert held["optimizer"] == 2 * shards + 4 * facts["params"]
        assert held["gathered"] == 0  # resharded after backward
        assert record["peak"]["params"] == shards
        if case == "fsdp_kept":  # all layers are whole between forward and backward
            assert record["peak"]["gathered"] >= 4 * LAYER_BYTES
        else:
            assert LAYER_BYTES <= record["peak"]["gathered"] < 4 * LAYER_BYTES


@pytest.mark.parametrize("case", ["ddp", "late", "views", "zero1", "fsdp", "fsdp_kept"])
def test_losses_are_bit_identical(report, case):
    assert report[case]["same_losses"]
    assert report[case]["note"] == "closed"
