"""The dashboard driven by keys and mouse."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from textual.drivers._writer_thread import MAX_QUEUED_WRITES, WriterThread
from textual.widgets import Input, Static

from dpwatch.run.model import snapshot as s
from dpwatch.tui import app as app_module
from dpwatch.tui.render.driver import Lasting
from dpwatch.tui.snapshots.source import Arrived
from dpwatch.tui.views.alerts.widget import Alerts
from dpwatch.tui.views.compare.columns import COLUMNS
from dpwatch.tui.views.compare.panel import metrics_of, sorts_of
from dpwatch.tui.views.compare.widget import Compare
from dpwatch.tui.views.panels import RankDetail
from dpwatch.tui.views.registry import VIEWS
from dpwatch.tui.widgets.rank_table import RankTable
from dpwatch.tui.widgets.view import digit

from .conftest import screen_text, shown
from .scenes import ddp_run, dp_run, hostile_run, snapshot, starting_run, with_lanes
from .schemes import NAMES, every_run, scheme_run, searched_runs


@pytest.mark.parametrize(
    ("key", "panel", "words"),
    [
        ("1", "overview", "nn.DataParallel"),
        ("7", "compare", "One run so far"),
        ("8", "alerts", "master imbalance"),
        ("0", "how", "One process, a thread per device"),
        ("2", "heatmap", "by median step time"),
        ("question_mark", "help", "never quits"),
    ],
)
async def test_digits_switch_panels(dashboard, key, panel, words):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        await pilot.press(key)
        assert app.panel == panel
        assert words in screen_text(app)


async def test_q_quits_and_tells_who_asked(dashboard):
    told = []
    async with dashboard(snapshot(dp_run()), on_quit=lambda: told.append(1)) as (app, pilot):
        await pilot.press("q")
        await pilot.pause()
        assert not app.is_running
    assert told == [1]
    assert app._source.closed == 1


async def test_ctrl_c_quits_from_the_filter_line_too(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        await pilot.press("slash", "ctrl+c")
        await pilot.pause()
        assert not app.is_running


async def test_escape_closes_and_never_quits(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        await pilot.press("7", "question_mark", "escape")
        assert app.panel == "compare"
        await pilot.press("1", "enter")
        assert app.panel == "rank"
        await pilot.press("escape", "escape", "escape")
        assert app.panel == "overview"
        assert app.is_running


async def test_the_way_back_leads_through_what_was_opened(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        await pilot.press("8", "enter", "question_mark")
        assert app.panel == "help"
        seen = []
        for _ in range(3):
            await pilot.press("escape")
            seen.append(app.panel)
        assert seen == ["rank", "alerts", "alerts"]


async def test_help_begins_with_the_keys_of_the_view_it_is_called_from(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        for index, view in enumerate(VIEWS[:-1]):
            await pilot.press(digit(index), "question_mark")
            await pilot.pause()
            text = screen_text(app)
            assert text.index(f"Keys in {view.title}") < text.index("Keys everywhere")
            for keys, _ in view.keys:
                assert keys in text


@pytest.mark.parametrize("width", [80, 120, 200])
async def test_the_view_on_screen_is_marked_and_every_view_can_be_clicked(dashboard, width):
    async with dashboard(snapshot(ddp_run(), dp_run()), size=(width, 30)) as (app, pilot):
        for index, view in enumerate(VIEWS):
            bar = screen_text(app).splitlines()[1]
            await pilot.click("#nav", offset=(bar.index(f"{digit(index)} {view.short}"), 0))
            assert app.panel == view.name
            bar = screen_text(app).splitlines()[1]
            assert f"[{digit(index)} {view.short}" in bar
            assert bar[: bar.index("runs") if "runs" in bar else None].count("[") == 1
            head = screen_text(app).splitlines()[0]
            assert "runs" in bar or "run 2/2" in head


async def test_the_footer_offers_to_go_back_where_there_is_something_to_close(dashboard):
    async with dashboard(snapshot(dp_run()), size=(80, 24)) as (app, pilot):
        offered = []
        for key in ("1", "enter", "escape", "slash", "escape", "7", "enter", "0", "7"):
            await pilot.press(key)
            await pilot.pause()
            footer = screen_text(app).splitlines()[-1]
            offered.append("esc Back" in footer)
            if app.focused is not app.query_one(Input):  # there a space is a space
                assert "s Stacks" in footer
        assert offered == [False, True, False, True, False, False, True, True, False]


async def test_arrows_and_letters_move_the_cursor(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        table = app.query_one(RankTable)
        for key, row in (("j", 1), ("down", 2), ("k", 1), ("G", 3), ("j", 3), ("g", 0), ("up", 0)):
            await pilot.press(key)
            assert table.cursor == row, key


async def test_enter_opens_the_row_with_its_own_numbers(dashboard):
    async with dashboard(snapshot(dp_run()), size=(120, 45)) as (app, pilot):
        await pilot.press("j", "j", "enter")
        assert app.query_one(RankDetail).key == (0, "vgpu:2")
        text = screen_text(app)
        assert "vgpu:2" in text
        assert "30.9 MiB" in text
        assert "GIL wait" in text


async def test_the_filter_narrows_and_escape_clears_it(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        table = app.query_one(RankTable)
        await pilot.press("slash", *"gpu:2")
        await pilot.pause()
        assert [rank.device for rank in table.rows] == ["vgpu:2"]
        await pilot.press("enter")
        assert app.focused is table
        assert len(table.rows) == 1
        await pilot.press("escape")
        await pilot.pause()
        assert len(table.rows) == 4
        assert not app.query_one(Input).has_class("open")


async def test_letters_typed_into_the_filter_are_no_commands(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        await pilot.press("slash", "q", "n", "space", "0")
        assert app.is_running
        assert app.panel == "overview"
        assert not app.paused
        assert "no device matches" in screen_text(app)


async def test_the_cursor_stays_on_its_device_when_rows_come_and_go(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        table = app.query_one(RankTable)
        await pilot.press("j", "j")
        await pilot.press("slash", *"vgpu")
        await pilot.pause()
        view = dp_run()
        rest = replace(view, run=replace(view.run, ranks=view.run.ranks[1:]))
        app._source.queue.put(snapshot(rest))
        await shown(app, pilot, lambda: len(app.frame.view.run.ranks) == 3)
        assert table.rows[table.cursor].device == "vgpu:2"


async def test_space_pauses_while_data_goes_on(dashboard):
    async with dashboard(snapshot(dp_run(steps=10))) as (app, pilot):
        await pilot.press("space")
        app._source.queue.put(snapshot(dp_run(steps=25)))
        await shown(app, pilot, lambda: app.frame.newest_steps == 25)
        text = screen_text(app)
        assert "PAUSED 15 steps behind" in text
        assert "10 / 200" in text
        await pilot.press("space")
        assert "PAUSED" not in screen_text(app)
        assert "25 / 200" in screen_text(app)


async def test_the_clock_goes_on_while_paused(dashboard):
    view = dp_run()
    async with dashboard(snapshot(view)) as (app, pilot):
        await pilot.press("space")
        later = snapshot(replace(view, elapsed_s=95.0))
        app._source.queue.put(later)
        await shown(app, pilot, lambda: app.frame.newest is later.runs[0])
        assert "1:35" in screen_text(app).splitlines()[0]


async def test_the_overview_sorts_by_its_columns(dashboard):
    view = dp_run()
    ranks = [
        replace(rank, step_ms=s.StepTime(p50=50.0 + index), gil_wait=None if index == 3 else 0.1)
        for index, rank in enumerate(view.run.ranks)
    ]
    view = replace(view, run=replace(view.run, ranks=ranks))
    async with dashboard(snapshot(view)) as (app, pilot):

        def shown_first():
            return [rank.device for rank in app.query_one(RankTable).rows]

        await pilot.press("full_stop")
        assert shown_first() == ["vgpu:3", "vgpu:2", "vgpu:1", "vgpu:0"]
        assert "step▼" in screen_text(app)
        await pilot.press("r")
        assert shown_first()[0] == "vgpu:0"
        assert "step▲" in screen_text(app)
        await pilot.press("full_stop")
        assert shown_first()[0] == "vgpu:0"
        assert "peak▼" in screen_text(app)
        await pilot.press("comma", "comma")
        assert shown_first() == ["vgpu:0", "vgpu:1", "vgpu:2", "vgpu:3"]
        await pilot.press("comma")
        assert "queue▼" in screen_text(app) or "idle▼" in screen_text(app)


async def test_a_click_on_a_heading_sorts(dashboard):
    async with dashboard(snapshot(ddp_run())) as (app, pilot):
        lines = screen_text(app).splitlines()
        row = next(i for i, text in enumerate(lines) if "queue" in text)
        for first in (3, 0):
            await pilot.click(offset=(lines[row].index("step time") + 2, row))
            assert app.query_one(RankTable).rows[0].rank == first
        await pilot.press("6")
        lines = screen_text(app).splitlines()
        row = next(i for i, text in enumerate(lines) if "by rank ▲" in text)
        await pilot.click(offset=(lines[row].index("by rank"), row))
        assert "by core ▼" in screen_text(app)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["j"], "vgpu:1"),
        (["8", "j"], "gil bound"),
        (["0"], "One process, a thread per device"),
        (["2"], "4 ranks by median step time"),
        (["4"], "replicate: vgpu:0 → 3 devices"),
        (["6", "j"], "27% on a core"),
        (["3"], "O 24.6 MiB"),
    ],
)
async def test_y_copies_the_row_or_the_view(dashboard, keys, words, monkeypatch):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        said = told_by(app, monkeypatch)
        await pilot.press(*keys, "y")
        assert words in app.clipboard
        assert said[0].startswith("copied ")
        assert not any(ord(c) < 32 and c != "\n" for c in app.clipboard)


async def test_e_saves_a_picture_where_dpwatch_was_started(dashboard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        said = told_by(app, monkeypatch)
        await pilot.press("e")
        (picture,) = tmp_path.glob("*.svg")
        assert "vgpu:0" in picture.read_text()
        monkeypatch.setattr(app, "save_screenshot", _no_space)
        await pilot.press("e")
        assert said == [f"saved ./{picture.name}", "not saved: No space left on device"]


def told_by(app, monkeypatch):
    """What the app says in passing; tests run without notifications."""
    said = []
    monkeypatch.setattr(app, "notify", lambda text, **more: said.append(text))
    return said


def _no_space():
    raise OSError(28, "No space left on device")


async def test_ascii_draws_with_ascii_alone(dashboard):
    views = with_lanes(ddp_run()), dp_run(title="été 漢字")
    async with dashboard(snapshot(*views), size=(80, 24), ascii_only=True) as (app, pilot):
        for index in range(len(VIEWS)):
            await pilot.press(digit(index))
            await pilot.pause()
            odd = {c for c in screen_text(app) if ord(c) > 127}
            assert not odd, (VIEWS[index].name, odd)
        await pilot.press("1", "enter")
        await pilot.pause()
        assert "+- Time of a step" in screen_text(app)
        await pilot.press("colon")
        await shown(app, pilot, lambda: "Show the view Alerts" in screen_text(app))
        assert screen_text(app).isascii()


async def test_n_p_and_tab_switch_runs(dashboard):
    async with dashboard(snapshot(ddp_run(), dp_run(state="finished"))) as (app, pilot):
        assert app.frame.run_id == "run-ddp"
        for key in ("p", "n", "tab", "shift+tab"):
            before = app.frame.run_id
            await pilot.press(key)
            assert app.frame.run_id != before, key


async def test_a_new_run_comes_up_by_itself_unless_another_was_picked(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        app._source.queue.put(snapshot(ddp_run(), dp_run()))
        await shown(app, pilot, lambda: app.frame.run_id == "run-ddp")
        await pilot.press("p")
        app._source.queue.put(snapshot(starting_run(), ddp_run(), dp_run()))
        await shown(app, pilot, lambda: len(app.frame.snapshot.runs) == 3)
        assert app.frame.run_id == "run-dp"


async def test_an_open_rank_stays_when_a_new_run_comes(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        await pilot.press("enter")
        app._source.queue.put(snapshot(ddp_run(), dp_run()))
        await shown(app, pilot, lambda: len(app.frame.snapshot.runs) == 2)
        assert (app.panel, app.frame.run_id) == ("rank", "run-dp")
        await pilot.press("n")
        assert app.frame.run_id == "run-ddp"
        await pilot.press("p", "escape")
        assert (app.panel, app.frame.run_id) == ("overview", "run-dp")


async def test_enter_on_a_diagnosis_goes_to_its_run_and_rank(dashboard):
    async with dashboard(snapshot(ddp_run(), dp_run())) as (app, pilot):
        await pilot.press("8", "j")
        assert app.query_one(Alerts).cursor == 1
        await pilot.press("g", "enter")
        assert app.panel == "rank"
        assert app.frame.run_id == "run-dp"
        assert app.query_one(RankDetail).key == (0, "vgpu:0")
        await pilot.press("escape")
        assert app.panel == "alerts"


async def test_clicks_on_panels_rows_and_runs(dashboard):
    async with dashboard(snapshot(ddp_run(), dp_run())) as (app, pilot):
        nav = screen_text(app).splitlines()[1]
        await pilot.click("#nav", offset=(nav.index("Compare"), 0))
        assert app.panel == "compare"
        await pilot.click("#nav", offset=(nav.index("Overview"), 0))
        table = app.query_one(RankTable)
        await pilot.click("#ranks", offset=(10, 1 + 2 * table.row_height))
        assert table.cursor == 2
        await pilot.click("#ranks", offset=(10, 1 + 2 * table.row_height))
        assert app.panel == "rank"
        await pilot.click("#nav", offset=(nav.index(" dp ") + 1, 0))
        assert app.frame.run_id == "run-dp"


async def test_the_command_palette_has_our_commands(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        names = [command.title for command in app.get_system_commands(app.screen)]
        assert {"Compare", "Pause", "Filter", "Next run", "Theme", "Quit"} <= set(names)
        await pilot.press("ctrl+p")
        await pilot.pause()
        assert type(app.screen).__name__ == "CommandPalette"
        app._source.queue.put(snapshot(ddp_run()))
        await shown(app, pilot, lambda: app.frame.run_id == "run-ddp")
        await pilot.press("escape")
        assert app.screen is app.screen_stack[0]


async def test_the_command_palette_runs_what_is_chosen(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        commands = {c.title: c.callback for c in app.get_system_commands(app.screen)}
        commands["Memory"]()
        await shown(app, pilot, lambda: app.panel == "memory")
        commands["Pause"]()
        await shown(app, pilot, lambda: app.paused)
        commands["Filter"]()
        await shown(app, pilot, lambda: app.query_one(Input).has_class("open"))
        commands["Quit"]()
        await shown(app, pilot, lambda: not app.is_running)


async def test_a_view_without_rows_to_narrow_has_no_filter(dashboard):
    async with dashboard(snapshot(dp_run()), size=(80, 24)) as (app, pilot):
        await pilot.press("4", "slash")
        await pilot.pause()
        assert app.panel == "communication"
        assert not app.query_one(Input).has_class("open")
        assert "Filter" not in screen_text(app).splitlines()[-1]


async def test_waiting_says_what_to_start(dashboard):
    async with dashboard(snapshot(notice="the run directory is empty"), size=(80, 24)) as (app, _):
        text = screen_text(app)
        for words in (
            "Waiting for a run",
            "dpwatch demo --gpus 4",
            "torchrun --nproc-per-node 4 -m dpwatch.trainer --strategy ddp",
            "dpwatch run -- torchrun --nproc-per-node 4 train.py",
            "the run directory is empty",
            "q Quit",
        ):
            assert words in text


async def test_waiting_with_words_of_the_caller(dashboard):
    async with dashboard(waiting_text="training starts [b]soon[/b]") as (app, pilot):
        await pilot.pause()
        assert "training starts [b]soon[/b]" in screen_text(app)


async def test_a_silent_hub_is_called_stale_with_seconds(dashboard):
    live, silent = dp_run(), replace(dp_run(), connection="stale")
    async with dashboard(snapshot(live, wall_s=100.0), snapshot(silent, wall_s=109.0)) as (app, _):
        assert "~ stale for 9 s" in screen_text(app).splitlines()[0]
        assert "no report from the run's hub for 9 s" in screen_text(app)


async def test_a_finished_run_keeps_its_last_state(dashboard):
    view = replace(dp_run(state="finished", steps=200), connection="closed")
    async with dashboard(snapshot(view)) as (app, _):
        assert "✓ finished" in screen_text(app)
        assert "56.2 MiB" in screen_text(app)


async def test_a_broken_source_is_said_and_the_screen_stays(dashboard):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        app._source.queue.put(OSError("the [b]tape[/b] ends here"))
        await shown(app, pilot, lambda: app.frame.trouble)
        text = screen_text(app)
        assert "NO MORE DATA" in text.splitlines()[0]
        assert "no more data: the [b]tape[/b] ends here" in text
        assert "vgpu:0" in text
        assert app._source.closed == 1


@pytest.mark.parametrize("size", [(79, 24), (80, 23), (20, 3)])
async def test_too_small_a_terminal_says_so(dashboard, size):
    async with dashboard(snapshot(dp_run()), size=size) as (app, pilot):
        assert app.query_one("#too-small", Static).display
        assert not app.query_one("#panels").display
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert not app.query_one("#too-small", Static).display
        assert "vgpu:0" in screen_text(app)


@pytest.mark.parametrize("size", [(80, 24), (240, 70)])
async def test_hostile_text_is_only_text(dashboard, size):
    async with dashboard(snapshot(hostile_run(), dp_run()), size=size) as (app, pilot):
        for key in "12345678901":
            await pilot.press(key)
            text = screen_text(app)
            assert not any(ord(c) < 32 and c != "\n" for c in text)
            assert "\u202e" not in text
        await pilot.press("enter")
        assert app.panel == "rank"
        assert app.is_running


async def test_snapshots_faster_than_the_screen_are_skipped(dashboard, monkeypatch):
    async with dashboard(snapshot(dp_run(steps=1))) as (app, pilot):
        made = []
        make = app.make_frame
        monkeypatch.setattr(app, "make_frame", lambda: (made.append(1), make()))
        burst = [snapshot(dp_run(steps=steps)) for steps in range(2, 60)]
        app._newest = burst[-1]
        for each in burst:
            app.post_message(Arrived(each))
        await shown(app, pilot, lambda: app.snapshot is burst[-1])
        assert len(made) == 1


async def test_a_thousand_ranks_are_drawn_only_where_visible(dashboard, monkeypatch):
    from dpwatch.tui.widgets import rank_table

    drawn = set()
    draw = rank_table.row_lines

    def counted(rank, *args, **kwargs):
        drawn.add(rank.rank)
        return draw(rank, *args, **kwargs)

    monkeypatch.setattr(rank_table, "row_lines", counted)
    async with dashboard(snapshot(ddp_run(ranks=1000))) as (app, pilot):
        table = app.query_one(RankTable)
        assert 0 < len(drawn) <= app.size.height
        await pilot.press("G")
        await pilot.pause()
        assert table.cursor == 999
        assert "vgpu:999" in screen_text(app)
        assert len(drawn) <= 2 * app.size.height


@pytest.mark.parametrize(
    "theme", ["dpwatch-light", "dpwatch-contrast", "dpwatch-safe", "ansi-dark"]
)
async def test_other_themes_and_resizing(dashboard, theme):
    async with dashboard(snapshot(dp_run())) as (app, pilot):
        app.theme = theme
        for size in ((80, 24), (240, 70), (100, 30)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert "vgpu:3" in screen_text(app)
            assert "56.2 MiB" in screen_text(app)


async def test_without_colour_bars_are_letters(dashboard, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    async with dashboard(snapshot(dp_run())) as (app, _):
        assert "FFFFBBBB" in screen_text(app).replace("·", "")


def order_of(app):
    return [run_id.removeprefix("run-") for run_id in app.query_one(Compare)._drawn.run_ids]


async def test_the_comparison_sorts_by_any_column_and_back(dashboard):
    async with dashboard(snapshot(*every_run()), size=(80, 24)) as (app, pilot):
        await pilot.press("7")
        assert order_of(app) == list(NAMES)
        await pilot.press("r")
        assert order_of(app) == list(NAMES)[::-1]
        await pilot.press("full_stop")
        assert order_of(app) == sorted(NAMES)
        await pilot.press("full_stop")
        assert order_of(app)[:2] == ["single", "dp"]
        assert "peak d0▼" in screen_text(app)
        await pilot.press("comma", "comma")
        assert order_of(app) == list(NAMES)
        await pilot.press("comma")
        assert "steps▼" in screen_text(app)


async def test_the_cursor_stays_on_its_run_and_opens_it(dashboard):
    async with dashboard(snapshot(*every_run()), size=(80, 24)) as (app, pilot):
        await pilot.press("7", "j", "j")
        assert "▸✓ ps-gpu0" in screen_text(app)
        await pilot.press("full_stop", "r")
        assert "▸✓ ps-gpu0" in screen_text(app)
        await pilot.press("enter")
        assert (app.panel, app.frame.run_id) == ("overview", "run-ps-gpu0")
        await pilot.press("0")
        assert "Device 0 is also the server" in screen_text(app)
        await pilot.press("escape")
        assert (app.panel, app.frame.run_id) == ("compare", "run-hsdp")
        assert "▸✓ ps-gpu0" in screen_text(app)


async def test_the_comparison_has_a_filter_of_its_own(dashboard):
    async with dashboard(snapshot(*every_run())) as (app, pilot):
        await pilot.press("7", "slash", *"zero")
        await pilot.pause()
        assert order_of(app) == ["zero1", "zero2", "zero3"]
        await pilot.press("enter", "1")
        assert len(app.query_one(RankTable).rows) == 4
        assert not app.query_one(Input).has_class("open")
        await pilot.press("7")
        assert app.query_one(Input).value == "zero"
        await pilot.press("escape")
        await pilot.pause()
        assert order_of(app) == list(NAMES)
        await pilot.press("slash", *"nothing")
        await pilot.pause()
        assert "no run matches" in screen_text(app)
        await pilot.press("enter", "enter", "j", "r", "m")
        assert app.panel == "compare"


@pytest.mark.parametrize("views", [every_run, searched_runs], ids=["runs", "searched"])
async def test_every_metric_and_column_can_be_reached_on_a_small_screen(dashboard, views):
    async with dashboard(snapshot(*views()), size=(80, 24)) as (app, pilot):
        await pilot.press("7")
        seen = ""
        for metric in metrics_of(app.frame):
            assert metric.title[:40] in screen_text(app)
            await pilot.press("m")
        sorts = sorts_of(app.frame)
        for _ in sorts:
            await pilot.press("full_stop")
            seen += screen_text(app)
        for column in COLUMNS:
            assert (column.key in sorts) == (not column.searched or views is searched_runs)
            assert column.title in seen or column.key not in sorts


async def test_the_largest_batches_fill_in_as_they_are_found(dashboard):
    found, names = searched_runs(), ("dp", "ddp", "zero3")
    search = s.Progress(names=names, done=0, within="trying 8 a device in 24 MiB")
    over = replace(snapshot(*every_run()), search=search)
    async with dashboard(over, size=(80, 24)) as (app, pilot):
        await pilot.press("7")
        text = screen_text(app)
        assert "largest batch, 1 of 3: dp, trying 8 a device in 24 MiB  then ddp" in text
        assert row_of(app, "dp").split()[-1] == "–"
        assert "max batch" in text
        over = replace(snapshot(*found), search=replace(search, done=3))
        app._source.queue.put(over)
        await shown(app, pilot, lambda: app.snapshot is over)
        text = screen_text(app)
        assert "largest batch, " not in text
        assert row_of(app, "dp").split()[-1] == "12"
        assert row_of(app, "zero3").split()[-1] == "none"
        assert row_of(app, "single").split()[-1] == "–"
        await pilot.press("M")
        assert [w for w in row_of(app, "dp").split() if w[0].isalnum()][1:] == [
            *("F", "98%", "F", "27%", "12", "vgpu:0")
        ]
        assert row_of(app, "ddp").split()[-3:] == ["44", "all", "alike"]


def row_of(app, name):
    """A run's row without the scroll bar beside it."""
    row = next(line for line in screen_text(app).splitlines() if f"✓ {name} " in line)
    return row.rstrip("▁▂▃▄▅▆▇█ ")


async def test_a_click_on_a_metric_and_on_a_row(dashboard):
    async with dashboard(snapshot(*every_run()), size=(80, 24)) as (app, pilot):
        await pilot.press("7")
        lines = screen_text(app).splitlines()
        row = next(i for i, text in enumerate(lines) if text.lstrip().startswith("m memory"))
        await pilot.click(offset=(lines[row].index("time"), row))
        assert "A step's phases" in screen_text(app)
        row = next(i for i, text in enumerate(lines) if "✓ zero2" in text)
        await pilot.click(offset=(10, row))
        assert "▸✓ zero2" in screen_text(app)
        await pilot.click(offset=(10, row))
        assert (app.panel, app.frame.run_id) == ("overview", "run-zero2")


def of_session(upto, done):
    views = every_run(upto=upto, running=done < upto)
    return replace(snapshot(*views), progress=s.Progress(names=NAMES, done=done))


async def test_the_session_shows_how_far_it_is_and_ends_on_the_comparison(dashboard):
    async with dashboard(of_session(3, 2)) as (app, pilot):
        text = screen_text(app)
        assert "3 of 13: ps-gpu0, step 60 of 60  then ps-cpu, ps-sharded, ddp" in text
        assert app.panel == "overview"
        app._source.queue.put(of_session(13, 13))
        await shown(app, pilot, lambda: app.panel == "compare")
        assert " of 13:" not in screen_text(app)
        await pilot.press("1")
        app._source.queue.put(of_session(13, 13))
        await pilot.pause(0.2)
        assert app.panel == "overview"


async def test_who_has_gone_elsewhere_is_left_there(dashboard):
    over = of_session(13, 13)
    async with dashboard(of_session(3, 2)) as (app, pilot):
        await pilot.press("8")
        app._source.queue.put(over)
        await shown(app, pilot, lambda: app.snapshot is over)
        assert app.panel == "alerts"
        # The comparison is made meanwhile, and takes no room.
        assert [each.id for each in app._panels.children if each.display] == ["alerts"]


@pytest.mark.parametrize("name", NAMES)
async def test_how_each_strategy_works_fits_a_small_screen(dashboard, name):
    async with dashboard(snapshot(scheme_run(name)), size=(80, 24)) as (app, pilot):
        await pilot.press("0")
        assert name in screen_text(app)
        await pilot.press("G")
        assert "What each device keeps" in screen_text(app)


class _Lost:
    def write(self, text=""):
        raise OSError(5, "Input/output error")

    flush = write


def test_a_lost_terminal_does_not_hold_the_app_up():
    writer = WriterThread(Lasting(_Lost()))
    writer.start()
    for _ in range(2 * MAX_QUEUED_WRITES):
        writer.write("text")
    writer.stop()
    assert not writer.is_alive()


async def test_a_terminal_whose_signal_was_lost_is_seen_to_have_another_size(
    dashboard, monkeypatch
):
    async with dashboard(snapshot(ddp_run()), size=(120, 35)) as (app, pilot):
        for columns, lines in ((60, 20), (100, 32)):
            monkeypatch.setattr(app_module, "terminal_size", lambda size=(columns, lines): size)
            app.see_size()
            await shown(app, pilot, lambda size=(columns, lines): app.screen.size == size)
            assert app.screen.has_class("small") == (columns < 80)
            app.see_size()
            assert app.size == (columns, lines)
