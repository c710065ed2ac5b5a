"""What Compare says in words, and `dpwatch demo` when it is left."""

from __future__ import annotations

from msgspec.structs import replace

from dpwatch.run.model.snapshot import RunView
from dpwatch.tui.views.compare.sentences import compare_sentences

from .scenes import ddp_run, dp_run, starting_run
from .schemes import every_run, searched_runs


def runs(*names: str) -> list[RunView]:
    found = {view.run.strategy: view for view in every_run()}
    return [found[name] for name in names]


def changed(view: RunView, **fields: object) -> RunView:
    return replace(view, run=replace(view.run, **fields))


def of_processes(view: RunView) -> RunView:
    """The same as resident sizes: of processes, libraries and all."""
    ranks = [replace(r, memory=replace(r.memory, source="rss")) for r in view.run.ranks]
    return changed(view, ranks=ranks)


def test_the_master_the_balance_and_the_sharding_each_in_figures():
    assert compare_sentences(runs("dp", "ddp", "fsdp")) == [
        "dp: device 0 peaks at 82.2 MiB, 2.48× the others' 33.2 MiB, and carries 3.00× their "
        "traffic; it runs out of memory first.",
        "ddp and fsdp load all devices equally.",
        "fsdp shards: each device keeps 12.3 MiB of parameters, gradients and optimizer state, "
        "a quarter of ddp's 49.2 MiB, and peaks at 25.0 MiB, not 70.1 MiB.",
    ]


def test_without_sharding_the_peaks_are_compared():
    assert compare_sentences(runs("dp", "ddp"))[1:] == [
        "ddp loads all devices equally.",
        "The fullest device needs 70.1 MiB under ddp, 82.2 MiB under dp.",
    ]


def test_of_many_balanced_runs_their_number_is_told():
    said = compare_sentences(every_run())
    assert "10 of 13 load all devices equally." in said
    assert sum("runs out of memory first" in each for each in said) == 2  # dp, ps-gpu0


def test_no_device_is_first_where_another_is_as_full():
    """As under zero1, where two of four devices have the larger parts."""
    ddp, dp = runs("ddp", "dp")
    first, second, *others = dp.run.ranks
    as_full = replace(second, memory=first.memory)
    (said, *_) = compare_sentences([ddp, changed(dp, ranks=[first, as_full, *others])])
    assert said == (
        "dp: 2 of 4 devices peak at 82.2 MiB, 2.48× the others' 33.2 MiB; device 0 carries 3.00× "
        "the others' traffic."
    )


def test_only_the_same_model_is_said_to_be_sharded():
    ddp, fsdp = runs("ddp", "fsdp")
    larger = changed(fsdp, model=replace(fsdp.run.model, param_bytes=1))
    assert not any("shards" in each for each in compare_sentences([ddp, larger]))


def test_devices_of_different_sizes_are_not_told_which_is_full_first():
    ddp, dp = runs("ddp", "dp")
    first, *others = dp.run.ranks
    large = replace(first, memory=replace(first.memory, capacity_bytes=1 << 40))
    said = compare_sentences([ddp, changed(dp, ranks=[large, *others])])
    assert not any("first" in each for each in said)
    unknown = compare_sentences([ddp, changed(dp, devices="cuda")])
    assert not any("first" in each for each in unknown)


def test_resident_sizes_are_not_compared():
    views = [of_processes(view) for view in runs("dp", "ddp", "fsdp")]
    assert compare_sentences(views) == [
        "dp: device 0 carries 3.00× the others' traffic.",
        "ddp and fsdp load all devices equally.",
        "fsdp shards: each device keeps 12.3 MiB of parameters, gradients and optimizer state, "
        "a quarter of ddp's 49.2 MiB.",
    ]


def test_speed_is_compared_where_devices_are_real():
    """Virtual ones share the host's cores, so their times measure those."""
    dp, ddp = dp_run(), ddp_run()
    assert not any("samples" in each for each in compare_sentences([dp, ddp]))
    real = [changed(view, devices="cuda") for view in (dp, ddp)]
    assert "ddp trains 1.32× as many samples per second as dp." in compare_sentences(real)


def test_of_one_run_or_none_measured_nothing_is_said():
    assert compare_sentences([dp_run()]) == []
    assert compare_sentences([starting_run(), starting_run()]) == []


def test_the_largest_batches_in_words():
    views = {view.run.strategy: view for view in searched_runs()}
    said = compare_sentences([views["dp"], views["ddp"]])
    assert (
        "The largest batch per device: 12 under dp (vgpu:0 98% full, the others at most 27%), "
        "44 under ddp." in said
    )
    assert "The largest batch per device: none under zero3, 12 under dp." in compare_sentences(
        [views["dp"], views["zero3"]]
    )
    alike = replace(views["dp"], largest_batch=views["ddp"].largest_batch)
    assert "The largest batch per device is 44 under each." in compare_sentences(
        [alike, views["ddp"]]
    )
    assert not any("batch" in each for each in compare_sentences([views["dp"], views["single"]]))
