"""The Markdown table: its shape, its figures, and text that can't break out of it."""

from msgspec.structs import replace

from dpwatch.cli.markdown import markdown, table
from dpwatch.run.model.largest_batch import LargestBatch
from tests.tui.scenes import ddp_run, dp_run, hostile_run, starting_run


def cells(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_a_row_a_run_with_device_0_and_the_fullest_other():
    dp, ddp = cells(markdown([dp_run().run, ddp_run().run]))
    mib = 1 << 20
    assert dp["strategy"] == "dp"
    assert dp["optimizer MiB"] == f"{2 * 12_900_000 / mib:.2f} / 0.00"
    assert dp["peak d0 MiB"] == f"{58_900_000 / mib:.2f}"
    assert dp["peak others MiB"] == f"{32_400_000 / mib:.2f}"
    first = dp_run().run.ranks[0]
    moved = first.sent_bytes_per_step + first.received_bytes_per_step
    assert dp["traffic d0 MiB/step"] == f"{moved / mib:.2f}"
    assert (dp["GIL"], dp["exposed"]) == ("13%", "–")
    assert (ddp["exposed"], ddp["step ms"], ddp["loss"]) == ("8%", "78.0", "2.122")


def test_the_unknown_is_a_dash_never_zero():
    (row,) = cells(markdown([starting_run().run]))
    assert row.pop("strategy") == "dp (starting)"
    assert set(row.values()) == {"–", "– / –"}


def test_the_largest_batch_has_a_column_where_it_is_known():
    runs = [dp_run().run, ddp_run().run]
    found = LargestBatch("dp", 24, 96, "vgpu:0", [], 9)
    rows = cells(markdown(runs, {"run-dp": found}))
    assert [row["largest batch"] for row in rows] == ["24", "–"]
    assert "largest batch" not in markdown(runs)


def test_one_strategy_twice_is_told_apart_by_its_titles():
    runs = [replace(ddp_run().run, title=title) for title in ("overlap", "no overlap")]
    assert [row["strategy"] for row in cells(markdown(runs))] == [
        "ddp: overlap",
        "ddp: no overlap",
    ]


def test_a_server_on_the_host_is_no_device():
    run = dp_run().run
    server = replace(run.ranks[0], device="host")
    text = markdown([replace(run, strategy="ps-cpu", ranks=[*run.ranks[1:], server])])
    (row,) = cells(text)
    assert row["peak d0 MiB"] == row["peak others MiB"] == f"{32_400_000 / (1 << 20):.2f}"
    assert row["peak host MiB"] == f"{58_900_000 / (1 << 20):.2f}"
    assert "its server on the host sends and receives" in text


def test_text_from_ranks_stays_in_its_cell():
    text = markdown([hostile_run().run])
    assert "\x1b" not in text
    assert len(cells(text)) == 1
    rows = table(["a", "b"], [["x|y\n<b>", "1"]])
    assert rows[2].startswith("| x\\|y\ufffd\\<b>")
    assert [len(row) for row in rows] == [len(rows[0])] * 3
