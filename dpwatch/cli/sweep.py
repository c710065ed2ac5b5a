"""`dpwatch demo --sweep-gpus`: a chart and a table of device 0 by number of devices."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from dpwatch.cli.errors import FINE, CommandError
from dpwatch.cli.markdown import table as markdown_table
from dpwatch.cli.output import columns, formatted
from dpwatch.cli.progress import teller
from dpwatch.demo.session import Session
from dpwatch.demo.sweep import Point, Sweep, summary
from dpwatch.trainer.config import TrainConfig
from dpwatch.units import UNKNOWN, mebibytes

CHART_HEIGHT = 12
MOST_COLUMNS = 100

_CHARTS = (
    ("device0_traffic_bytes", "device 0's traffic a step, by number of devices"),
    ("device0_peak_bytes", "device 0's memory peak, by number of devices"),
)
_TITLES = (
    *("strategy", "devices", "traffic d0 MiB", "traffic others MiB"),
    *("peak d0 MiB", "peak others MiB", "step ms", "samples/s"),
)


def run(configs: Sequence[TrainConfig], *, as_json: bool, as_markdown: bool) -> int:
    """Trains under each configuration in turn, with progress on stderr, and prints the result."""
    with Session(configs) as session:
        code = session.wait(teller(session))
        runs = {run.run_id: run for run in session.runs()}
        sweep = summary(configs, [runs.get(run_id) for run_id in session.run_ids])
        print(formatted(sweep) if as_json else markdown(sweep) if as_markdown else text(sweep))
        if code:
            raise CommandError(session.error or "the training failed", code)
    return FINE


def text(sweep: Sweep) -> str:
    """Charts, then the figures."""
    from dpwatch.tui.views.compare.sweep_chart import lines

    width = min(MOST_COLUMNS, shutil.get_terminal_size().columns)
    said = [f"{sweep.title}, batch {sweep.batch_per_gpu} a device"]
    for field, title in _CHARTS:
        said += ["", title, *lines(sweep.series(field), width, CHART_HEIGHT)]
    return "\n".join([*said, "", *columns(_TITLES, _rows(sweep))])


def markdown(sweep: Sweep) -> str:
    """The figures as a Markdown table."""
    return "\n".join(markdown_table(_TITLES, _rows(sweep)))


def _rows(sweep: Sweep) -> list[list[str]]:
    return [_row(point) for point in sweep.points]


def _row(point: Point) -> list[str]:
    measured = (
        mebibytes(point.device0_traffic_bytes),
        mebibytes(point.others_traffic_bytes),
        mebibytes(point.device0_peak_bytes),
        mebibytes(point.others_peak_bytes),
        UNKNOWN if point.step_ms is None else f"{point.step_ms:.1f}",
        UNKNOWN if point.samples_per_s is None else f"{point.samples_per_s:.1f}",
    )
    return [point.strategy, str(point.gpus), *measured]
