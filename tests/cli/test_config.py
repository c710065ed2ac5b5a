"""The viewer's settings: flag, environment, file, and what is said of a wrong one."""

from __future__ import annotations

import sys

import pytest

from dpwatch.cli import config, settings, watch
from dpwatch.cli.errors import CommandError
from dpwatch.cli.parser import build_parser
from dpwatch.tui.app import DashboardApp
from dpwatch.tui.draw.palette import THEMES
from tests.processes import dpwatch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes the file that is looked for where nobody names one."""
    monkeypatch.delenv("DPWATCH_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for setting in settings.SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)

    def write(text):
        path = tmp_path / "dpwatch" / "config.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def found(*arguments):
    return settings.effective(build_parser().parse_args(arguments))


def refused(*arguments):
    with pytest.raises(CommandError) as error:
        found(*arguments)
    assert error.value.code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_flag_counts_before_the_environment_and_that_before_the_file(file, monkeypatch):
    assert found()["theme"] == settings.Resolved("dark", "default")
    path = file('theme = "safe"\nascii = true\ninterval = 2\nremote_dir = "/x"')
    assert found()["theme"] == settings.Resolved("safe", str(path))
    assert found()["interval"] == settings.Resolved(2.0, str(path))
    assert found()["remote-dir"] == settings.Resolved("/x", str(path))
    monkeypatch.setenv("DPWATCH_THEME", "light")
    monkeypatch.setenv("DPWATCH_INTERVAL", "0.5")
    monkeypatch.setenv("DPWATCH_PORT", "")
    assert found()["theme"] == settings.Resolved("light", "DPWATCH_THEME")
    assert found()["interval"].value == 0.5
    assert found()["port"].origin == "default"
    given = found("--theme", "contrast", "--no-ascii", "--interval", "10")
    assert [given[key].value for key in ("theme", "ascii", "interval")] == ["contrast", False, 10.0]
    assert {given[key].origin for key in ("theme", "ascii", "interval")} == {"flag"}
    assert found("--view", "threads", "ssh", "--sort", "GIL", "h")["view"].value == "threads"


@pytest.mark.parametrize("said", ["heatmap", "Ranks", "ranks", "2"])
def test_a_view_goes_by_what_the_screen_says_of_it_too(said):
    assert found("--view", said)["view"].value == "heatmap"


def test_another_file_can_be_named(file, tmp_path, monkeypatch):
    file('theme = "safe"')
    other = tmp_path / "other.toml"
    monkeypatch.setenv("DPWATCH_CONFIG", str(other))
    assert refused() == f"DPWATCH_CONFIG names {other}, which does not exist"
    other.write_text('view = "memory"')
    assert found()["view"] == settings.Resolved("memory", str(other))
    assert found()["theme"].origin == "default"


def test_a_relative_place_is_none(file, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "here")
    monkeypatch.setenv("HOME", "/home/ada")
    assert str(settings.config_file()[0]) == "/home/ada/.config/dpwatch/config.toml"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('theme = "blue"', "theme = 'blue': must be dark, light, contrast or safe"),
        ("theme = 3", "theme = 3: must be dark, light"),
        ('ascii = "perhaps"', "ascii = 'perhaps': must be true or false"),
        ("ascii = 1", "ascii = 1: must be true or false"),
        ("interval = 0", "interval = 0: must be seconds from 0.1 to 10"),
        ("interval = true", "must be seconds"),
        ("interval = nan", "must be seconds"),
        ('interval = ["often"]', "must be seconds"),
        ('view = "11"', "view = '11': must be overview, "),
        ('sort = "name"', "sort = 'name': must be step time, "),
        ("port = 70000", "port = 70000: must be a port"),
        ('ssh = ""', "ssh = '': must be a command"),
        ('colour = "x"', "unknown key 'colour'; known keys: theme, ascii, "),
        ('thme = "x"', "unknown key 'thme'; did you mean 'theme'? known keys: theme, "),
        ("theme = ", "is not TOML: "),
    ],
)
def test_what_is_wrong_in_the_file_is_one_line_with_its_place(file, line, says):
    path = file(line)
    said = refused()
    assert str(path) in said
    assert says in said


def test_what_is_wrong_elsewhere_is_named_too(file, monkeypatch):
    assert refused("--interval", "often").startswith("--interval = 'often': must be seconds")
    assert "--port = 'x'" in refused_port(monkeypatch)
    monkeypatch.setenv("DPWATCH_VIEW", "nowhere")
    assert refused().startswith("DPWATCH_VIEW = 'nowhere': must be overview, ")


def refused_port(monkeypatch):
    monkeypatch.setenv("DPWATCH_PORT", "x")
    said = refused().replace("DPWATCH_PORT", "--port")
    monkeypatch.delenv("DPWATCH_PORT")
    return said


def test_a_file_that_cannot_be_read(file, tmp_path, monkeypatch):
    path = file("")
    path.write_bytes(b"theme = '\xff'")
    assert refused() == f"can't read {path}: it is not UTF-8 text"
    monkeypatch.setenv("DPWATCH_CONFIG", str(tmp_path))
    assert refused() == f"can't read {tmp_path}: Is a directory"


def test_what_config_prints_is_a_file_that_says_the_same(file):
    path = file('theme = "light"\nssh = "ssh -p \\"2\\""')
    before = found("--interval", "1", "config")
    text = config.as_toml(build_parser().parse_args(["--interval", "1", "config"]))
    assert f"# {path}" in text.splitlines()[0]
    assert 'theme = "light"  # this file' in text
    assert "interval = 1.0  # flag" in text
    assert "ascii = false  # default" in text
    for setting in settings.SETTINGS:
        assert f"\n{setting.key} = " in text or f"\n# {setting.key} = " in text
        assert setting.variable in text
    table = tomllib.loads(text)
    assert table == {key: told.value for key, told in before.items() if told.value is not None}
    path.write_text(text)
    assert {key: told.value for key, told in found().items()} == {
        key: told.value for key, told in before.items()
    }


def test_the_command_and_its_exit_code(tmp_path):
    done = dpwatch("config", XDG_CONFIG_HOME=str(tmp_path), DPWATCH_THEME="safe")
    assert done.returncode == 0
    assert 'theme = "safe"  # DPWATCH_THEME' in done.stdout
    assert "(does not exist)" in done.stdout.splitlines()[0]
    done = dpwatch("config", DPWATCH_CONFIG=str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


async def test_the_dashboard_begins_as_it_was_told(file):
    assert {f"dpwatch-{name}" for name in settings.THEMES} == {theme.name for theme in THEMES}
    file('theme = "contrast"\nview = "threads"\nsort = "GIL"\ninterval = 1.0')
    told = watch.screen_options(build_parser().parse_args(["--ascii"]))
    app = DashboardApp(NoSource(), **told)
    async with app.run_test(size=(80, 24)):
        assert (app.theme, app.panel) == ("dpwatch-contrast", "threads")
        assert app.has_class("ascii")
        assert app.query_one("#ranks").order == ("GIL", False)
        assert NoSource.interval_s == 0.25
        assert app._source.interval_s == 1.0


class NoSource:
    interval_s = 0.25

    def next(self, timeout_s):
        return None

    def close(self):
        pass
