"""Runs the demo: strategies in turn, a scenario, a search or a sweep."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dpwatch.cli import max_batch, sweep
from dpwatch.cli.errors import FINE, CommandError
from dpwatch.cli.markdown import markdown
from dpwatch.cli.output import json_text, table
from dpwatch.cli.progress import teller
from dpwatch.cli.watch import on_terminal, require_terminal, screen_options
from dpwatch.demo.max_batch import DEFAULT_CAPACITY_BYTES
from dpwatch.demo.scenarios import Scenario, find
from dpwatch.demo.session import Session
from dpwatch.demo.sweep import STEPS, parse_counts
from dpwatch.run.diagnose.oom import MARK
from dpwatch.run.model.snapshot import Run, Snapshot
from dpwatch.text_safety import printable
from dpwatch.trainer.config import ConfigError, TrainConfig, parse_names, require
from dpwatch.trainer.options import MODELS, configs_from

GPUS = 4
STRATEGIES = "dp,ddp,fsdp"
MANY = 3
STEPS_OF_MANY = 40
"""Steps of each when `MANY` strategies or more are compared."""

FAILED = 1

WAITING = """\
Starting real training

A trainer process imports torch and starts its devices.
The first steps are here in about five seconds."""


def asked(options: argparse.Namespace) -> Callable[[], int]:
    """What to run, with validated configurations.

    Raises:
        ConfigError: One is invalid.
    """
    form = {"as_json": options.json, "as_markdown": options.markdown}
    if options.find_max_batch:
        limited = _configs(options, gpu_mem_bytes=DEFAULT_CAPACITY_BYTES)
        if _headless_asked(options) or not on_terminal():
            return partial(max_batch.run, limited, **form)
        configs = _configs(options)
        # The search is about batches that don't fit.
        return partial(_show, configs, options, out_of_memory=True, search=limited)
    if options.sweep_gpus:
        return partial(sweep.run, _sweep_configs(options), **form)
    scenario = find(options.scenario) if options.scenario else None
    configs = (
        _scenario_configs(options, scenario) if scenario else _configs(options, **MODELS["demo"])
    )
    meant = bool(scenario and scenario.out_of_memory)
    return partial(_show, configs, options, out_of_memory=meant, scenario=scenario)


def _configs(options: argparse.Namespace, **defaults: Any) -> list[TrainConfig]:
    gpus = GPUS if options.gpus is None else options.gpus
    names = parse_names(options.strategy or STRATEGIES)
    if options.strategy == "all":  # all that work with that many devices
        names = [name for name in names if gpus % require(name).gpus_multiple == 0]
    if len(names) >= MANY and "steps" not in defaults:
        defaults["steps"] = STEPS_OF_MANY
    configs: list[TrainConfig] = configs_from(options, names, gpus, **defaults)
    return configs


def _sweep_configs(options: argparse.Namespace) -> list[TrainConfig]:
    """Every strategy at every number of devices it supports."""
    if options.gpus is not None:
        raise ConfigError("--sweep-gpus says how many devices; leave --gpus out")
    names, counts = parse_names(options.strategy or "dp,ddp"), parse_counts(options.sweep_gpus)
    possible = [(n, c) for n in names for c in counts if c % require(n).gpus_multiple == 0]
    if not possible:
        raise ConfigError(f"--sweep-gpus {options.sweep_gpus}: {names[0]} can't use so many")
    return [configs_from(options, [name], count, steps=STEPS)[0] for name, count in possible]


def _scenario_configs(options: argparse.Namespace, scenario: Scenario) -> list[TrainConfig]:
    """A scenario's runs; the user's options apply, except to what the scenario varies."""
    if options.strategy:
        raise ConfigError(f"--scenario {scenario.name} has its own strategies; leave them out")
    gpus = scenario.gpus if options.gpus is None else options.gpus
    return [
        replace(configs_from(options, [each.strategy], gpus, **scenario.common)[0], **each.own)
        for each in scenario.variants
    ]


def _headless_asked(options: argparse.Namespace) -> bool:
    return bool(options.headless or options.json or options.markdown)


def _show(
    configs: Sequence[TrainConfig],
    options: argparse.Namespace,
    *,
    out_of_memory: bool,
    search: Sequence[TrainConfig] = (),
    scenario: Scenario | None = None,
) -> int:
    """Trains under each configuration in turn and shows it.

    Args:
        configs: What to train.
        options: Where to show it.
        out_of_memory: Whether a run may end out of memory.
        search: What to find the largest batch of, after training.
        scenario: Which scenario they belong to.
    """
    headless = _headless_asked(options)
    screen = {}
    if not headless:
        require_terminal()
        screen = screen_options(options)
    told = {"past_failures": out_of_memory, "search": search, "scenario": scenario}
    with Session(configs, **told) as session:
        if headless:
            return _headless(session, _renderer(options), out_of_memory=out_of_memory)
        return _dashboard(session, screen, out_of_memory=out_of_memory)


def _check(session: Session, code: int, *, out_of_memory: bool) -> None:
    """Fails if the training did, unless all failures were out of memory and that was intended."""
    reasons = [run.reason for run in session.runs() if run.state == "failed"]
    meant = out_of_memory and reasons and all(MARK in reason for reason in reasons)
    if code and not (meant and code == FAILED):
        raise CommandError(session.error or "the training failed", code)


def _renderer(options: argparse.Namespace) -> Callable[[Sequence[Run]], str]:
    return json_text if options.json else markdown if options.markdown else table


def _headless(
    session: Session, render: Callable[[Sequence[Run]], str], *, out_of_memory: bool
) -> int:
    code = session.wait(teller(session))
    print(render(session.runs()))
    _check(session, code, out_of_memory=out_of_memory)
    return FINE


def _leave_verdict(snapshot: Snapshot | None) -> None:
    """Prints the comparison, so that it stays in the terminal after the dashboard has closed."""
    from dpwatch.tui.views.compare.sentences import verdict

    told = verdict(snapshot) if snapshot is not None else []
    if told:
        print(*(printable(each) for each in told), sep="\n")
        runs = len(snapshot.runs) if snapshot is not None else 1
        print(f"To see it again: dpwatch --last {runs}")


def _dashboard(session: Session, screen: Mapping[str, Any], *, out_of_memory: bool) -> int:
    from dpwatch.tui.app import DashboardApp  # slow to import, and needless without a screen

    app = DashboardApp(session.source, title="dpwatch demo", waiting_text=WAITING, **screen)
    app.run()
    _leave_verdict(app.snapshot)
    if session.failed:
        _check(session, session.wait(), out_of_memory=out_of_memory)
    if session.search is not None and session.search.error:
        raise CommandError(session.search.error, FAILED)
    return app.return_code or FINE
