"""Strategies that fail, and recorded losses: for any Python with this on its path."""

import itertools
import json
import os
import sys
import threading
import types

from dpwatch.plan import schemes
from dpwatch.trainer import registry, strategies


def _build(config, place, probe):
    from dpwatch.trainer.strategies import ddp

    strategy = ddp.build(config, place, probe)
    train = strategy.step
    done = []

    def step(tokens):
        done.append(None)
        if len(done) == 3 and config.strategy == "raises" and place.rank == 1:
            raise RuntimeError("the cooling has failed\nand a second line")
        if len(done) == 3 and config.strategy == "dies" and place.rank == 1:
            os._exit(7)
        if len(done) == 3 and config.strategy == "sticks":
            threading.Event().wait()
        return train(tokens)

    strategy.step = step
    return strategy


def _recording(build):
    """Saves losses and parameters for a test to compare, if it names a directory for them."""

    def recorded(config, place, probe):
        import torch

        strategy = build(config, place, probe)
        if not os.environ.get("DPWATCH_TEST_OUT"):
            return strategy
        losses = []
        train, leave = strategy.step, strategy.close

        def step(tokens):
            loss = train(tokens)
            losses.append(loss.item())
            return loss

        def close():
            out = os.path.join(os.environ["DPWATCH_TEST_OUT"], str(place.rank))
            torch.save((losses, dict(strategy.parameters())), out)
            leave()

        strategy.step, strategy.close = step, close
        return strategy

    return recorded


def _profiling(build):
    """Sums the allocator's events of the steps that the ledger tracks."""

    def profiled(config, place, probe):
        strategy = build(config, place, probe)
        folder = os.environ.get("DPWATCH_TEST_PROFILE")
        if not folder:
            return strategy
        from torch.profiler import ProfilerActivity, profile, record_function

        # From the first step on: a free of what was made before it started, the profiler ignores.
        profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        train = strategy.step
        steps = itertools.count()

        def step(tokens):
            number = next(steps)
            if number == 0:
                profiler.start()
            with record_function(f"step {number}"):
                loss = train(tokens)
            if number == FOLLOWED[-1] + 1:  # what is kept from step to step goes in the next
                from tests.allocator import rises

                profiler.stop()
                found = rises(profiler)
                with open(os.path.join(folder, str(place.rank)), "w") as file:
                    json.dump([found[f"step {step}"] for step in FOLLOWED], file)
            return loss

        strategy.step = step
        return strategy

    return profiled


FOLLOWED = (1, 2)
NAMES = ("raises", "dies", "sticks")

if "dpwatch.trainer.strategies.sabotage" not in sys.modules:
    module = types.ModuleType("dpwatch.trainer.strategies.sabotage")
    module.build = _build
    sys.modules[module.__name__] = module
    registry._SPECS += tuple(
        registry.StrategySpec(name=name, summary="", module="sabotage", distributed=True)
        for name in NAMES
    )
    schemes._SCHEMES.update((name, schemes.scheme("ddp")) for name in NAMES)
    strategies.build = _profiling(_recording(strategies.build))
