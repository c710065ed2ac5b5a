"""The strategies by name. A new one is its file in `strategies/` and one entry here. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True, frozen=True)
class StrategySpec:
    """What is known of a strategy without torch.

    Attributes:
        name: Its name on the command line.
        summary: One line for a person.
        module: Its file in `strategies/`, which defines `build(config, place, probe)`, and
            `check(config, place)` if it cannot be trained everywhere.
        distributed: One process per device (or per few), in one process group; else one for all.
        max_gpus: Most devices it can use, None for any number.
        gpus_multiple: Devices per rank, if distributed: `--gpus` is a multiple.
        options: Fields of `TrainConfig` that it supports and not every strategy does.
        uses_host: Host memory holds a part of what is trained: one more row after the devices.
    """

    name: str
    summary: str
    module: str
    distributed: bool
    max_gpus: int | None = None
    gpus_multiple: int = 1
    options: frozenset[str] = frozenset()
    uses_host: bool = False


_SPECS = (
    StrategySpec(
        name="single",
        summary="one device trains alone: the baseline",
        module="single",
        distributed=False,
        max_gpus=1,
    ),
    StrategySpec(
        name="dp",
        summary="nn.DataParallel: one process, device 0 replicates the model and gathers outputs",
        module="dp",
        distributed=False,
    ),
    StrategySpec(
        name="ps-gpu0",
        summary="parameter server on device 0: workers push gradients to it and pull parameters",
        module="ps_gpu0",
        distributed=False,
    ),
    StrategySpec(
        name="ps-cpu",
        summary="parameter server on the host: all devices are workers",
        module="ps_cpu",
        distributed=False,
        uses_host=True,
    ),
    StrategySpec(
        name="ps-sharded",
        summary="parameter server sharded over the devices: each updates its part",
        module="ps_sharded",
        distributed=False,
    ),
    StrategySpec(
        name="ddp",
        summary="DistributedDataParallel: a process per device, gradients all-reduced in backward",
        module="ddp",
        distributed=True,
        options=frozenset({"overlap"}),
    ),
    StrategySpec(
        name="ddp-mp",
        summary="DDP with each model split over two devices: model parallel inside data parallel",
        module="ddp_mp",
        distributed=True,
        gpus_multiple=2,
    ),
    StrategySpec(
        name="zero1",
        summary="DDP with sharded optimizer state: a rank updates its tensors and broadcasts them",
        module="zero1",
        distributed=True,
    ),
    StrategySpec(
        name="zero2",
        summary="sharded gradients too: reduced to their owner, bucket by bucket",
        module="zero2",
        distributed=True,
    ),
    StrategySpec(
        name="zero3",
        summary="sharded parameters too: gathered block by block, used and freed",
        module="zero3",
        distributed=True,
    ),
    StrategySpec(
        name="fsdp1",
        summary="FullyShardedDataParallel: each unit is a flat tensor, sharded over the ranks",
        module="fsdp1",
        distributed=True,
        options=frozenset({"cpu_offload", "wrap"}),
    ),
    StrategySpec(
        name="fsdp",
        summary="fully_shard: everything sharded, parameters gathered block by block",
        module="fsdp",
        distributed=True,
        options=frozenset({"cpu_offload", "reshard_after_forward"}),
    ),
    StrategySpec(
        name="hsdp",
        summary="fully_shard in groups of ranks, gradients all-reduced across the groups",
        module="hsdp",
        distributed=True,
        options=frozenset({"reshard_after_forward"}),
    ),
)


def known_names() -> tuple[str, ...]:
    """Names of all strategies, in the order a person should meet them."""
    return tuple(spec.name for spec in _SPECS)


def all_specs() -> tuple[StrategySpec, ...]:
    """All strategies, in the order of `known_names`."""
    return _SPECS


def find(name: str) -> StrategySpec | None:
    """The strategy of that name, None if there is none."""
    return next((spec for spec in _SPECS if spec.name == name), None)
