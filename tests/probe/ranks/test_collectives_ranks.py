"""Every collective is observed with the right bytes, and nothing changes: two gloo ranks."""

import pytest

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def reports(run_ranks):
    return run_ranks("collectives_rank.py")


@pytest.fixture(params=[0, 1], ids=["rank 0", "rank 1"])
def report(request, reports):
    return reports[request.param]


def of_group(records, group="default"):
    return [record for record in records if record["group"] == group]


def test_every_op_has_its_plain_name_and_its_bytes(reports):
    for rank, report in enumerate(reports):
        seen = [
            (record["op"], record["nbytes"], record["dtype"])
            for record in report["single"]["records"]
        ]
        assert seen == [
            ("all_reduce", 16, "float32"),
            ("broadcast", 16, "float32"),
            ("all_gather", 16, "float32"),
            ("all_gather", 16, "float32"),
            ("reduce_scatter", 32, "float32"),
            ("reduce_scatter", 32, "float32"),
            ("all_to_all", 16, "float32"),
            ("reduce", 16, "float32"),
            ("gather", 16, "float32"),
            ("scatter", 0, "") if rank else ("scatter", 32, "float32"),
            ("barrier", 0, ""),
            ("monitored_barrier", 0, ""),
            ("all_reduce", 32, "float64"),
        ]


def test_sequence_numbers_and_groups(report):
    records = report["single"]["records"]
    assert [record["seq"] for record in records] == list(range(len(records)))
    assert {(record["group"], record["ranks"]) for record in records} == {("default", 2)}
    assert report["single"]["issued"] == len(records) + 1  # and a message
    assert report["single"]["capture"] == "observer"
    assert report["single"]["unseen"] == ""
    (position,) = report["single"]["positions"]
    assert (position["group"], position["seq"]) == ("default", len(records) - 1)
    assert (position["op"], position["nbytes"], position["members"]) == ("all_reduce", 32, [])


def test_calls_have_their_source_line_and_output_size(report):
    records = report["single"]["records"]
    assert {record["where"].partition(":")[0] for record in records} == {
        "tests/probe/ranks/collectives_rank.py"
    }
    lines = [int(record["where"].partition(":")[2]) for record in records]
    assert lines == sorted(lines)
    out = {record["op"]: record["nbytes_out"] for record in records}
    assert (out["all_gather"], out["reduce_scatter"], out["broadcast"]) == (32, 16, 16)
    assert [record["is_async"] for record in records[:4]] == [False] * 4


def test_synchronous_calls_have_their_completion_and_blocked_time(report):
    records = report["single"]["records"][:-1]
    assert all(record["blocked_ns"] >= 0 for record in records)
    # A thread that lost its core between the call and its wait can't tell when the work ended.
    known = [record for record in records if record["completed_ns"] is not None]
    assert known
    for record in known:
        assert record["blocked_ns"] <= record["completed_ns"] - record["issued_ns"]


def test_groups_of_the_same_ranks_count_apart(report):
    records = report["asynchronous"]["records"]
    waited = of_group(records, "ranks 0,1")
    unwaited, barrier = of_group(records, "ranks 0,1 #2")
    assert [record["op"] for record in waited] == ["all_reduce"]
    assert waited[0]["blocked_ns"] is not None
    assert unwaited["op"] == "all_reduce"
    assert unwaited["blocked_ns"] is None
    assert (barrier["op"], barrier["seq"]) == ("barrier", 1)


def test_messages_have_a_peer_and_no_place_in_the_sequence(reports):
    for rank, report in enumerate(reports):
        records = report["messages"]["messages"]
        told = [
            (r["group"], r["op"], r["seq"], r["nbytes"], r["peer"], r["ranks"]) for r in records
        ]
        other = 1 - rank
        sent = [("default", "send", 0, 4, other, 1), ("default", "send", 1, 16, other, 1)]
        first = ("default", "recv", 0, 4, 0 if rank else None, 1)  # rank 0 takes from whoever comes
        assert told == [
            first, ("default", "recv", 1, 16, other, 1), *sent,
            ("ranks 0,1", "recv", 0, 16, other, 1), ("ranks 0,1", "send", 0, 16, other, 1),
        ]  # fmt: skip
        assert all(record["blocked_ns"] is not None for record in records)
        (barrier,) = report["messages"]["records"]
        assert (barrier["op"], barrier["seq"]) == ("barrier", 0)


def test_a_wait_on_a_future_gives_completion_and_blocked_time(report):
    gather, reduced, *of_ddp = report["futures"]["records"]
    for record in (gather, reduced):
        assert record["completed_ns"] >= record["issued_ns"]
        assert record["blocked_ns"] > 0
    hooked = [record for record in of_ddp if record["op"] == "all_reduce"]
    assert hooked
    assert {record["dtype"] for record in hooked} == {"float16"}
    assert all(record["completed_ns"] > record["issued_ns"] for record in hooked)
    assert {record["blocked_ns"] for record in hooked} == {None}  # C++ waits for the hook's


def test_ddp_reduces_exactly_the_gradients(report):
    for step in range(6):
        records = [record for record in report["ddp"]["records"] if record["step"] == step]
        reduced = [record["nbytes"] for record in records if record["op"] == "all_reduce"]
        assert sum(reduced) == report["ddp"]["grad_bytes"]
        if step >= 2:  # by then DDP has rebuilt its buckets and said so to all
            assert {record["op"] for record in records} == {"all_reduce"}
            assert len(reduced) > 1


def test_completion_of_ddps_own_calls_is_sampled(report):
    done = [record for record in report["ddp"]["records"] if record["completed_ns"]]
    assert done
    assert all(record["completed_ns"] > record["issued_ns"] for record in done)


def test_fully_shard_gathers_shards_and_reduces_whole_gradients(report):
    steps = [
        [record for record in report["fsdp"]["records"] if record["step"] == step]
        for step in range(6)
    ]
    for records in steps[1:]:
        scattered = [r["nbytes"] for r in records if r["op"] == "reduce_scatter"]
        gathered = [r["nbytes"] for r in records if r["op"] == "all_gather"]
        assert sum(scattered) == report["fsdp"]["grad_bytes"]
        # Each layer's shard, once in forward and once in backward.
        assert sum(gathered) == report["fsdp"]["grad_bytes"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_losses_are_bit_identical(report, strategy):
    assert report[strategy]["same_losses"]


def test_a_hundred_installs_neither_hang_nor_miss_calls(report):
    assert report["over_and_over"] == 300


def test_closing_restores_everything(report):
    assert report["restored"]


def test_without_the_observer_python_callers_are_still_seen(report):
    assert report["without"]["capture"] == "patch"
    seen = [(record["op"], record["nbytes"]) for record in report["without"]["records"]]
    assert seen == [("all_reduce", 16), ("all_gather", 16)]
    assert all(record["blocked_ns"] is not None for record in report["without"]["records"])
    assert report["without"]["unseen"] == "calls from C++"


def test_both_ranks_record_the_same_calls(reports):
    def story(report, case):
        keys = ("group", "seq", "op", "step", "nbytes")
        return [[record[key] for key in keys] for record in report[case]["records"]]

    for case in ("ddp", "fsdp", "asynchronous"):
        assert story(reports[0], case) == story(reports[1], case)
