"""What the viewer can be told by a flag, by the environment or in a file; that is its order, too.

The file is TOML: what `DPWATCH_CONFIG` names, else `$XDG_CONFIG_HOME/dpwatch/config.toml`, else
`~/.config/dpwatch/config.toml`, which need not be there. A setting's key, flag and variable are one
name: `remote-dir`, `--remote-dir`, `DPWATCH_REMOTE_DIR`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from dpwatch.cli.errors import CommandError

FILE_VARIABLE = "DPWATCH_CONFIG"
THEMES = ("dark", "light", "contrast", "safe")
FLAG, DEFAULT = "flag", "default"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        key: Its name in the file, from which flag and variable follow.
        default: Its value where nobody says anything, None for none.
        read: Turns TOML's value, or a text, into the setting's.

    Raises:
                ValueError: It is none of the allowed values.
        allowed: These, in words. Asked for only when they are to be told.
        help: What it is for.
        names: The allowed values one by one, where they can be counted. Slow, as `allowed` is.
    """

    key: str
    default: Any
    read: Callable[[Any], Any]
    allowed: Callable[[], str]
    help: str
    names: Callable[[], Sequence[str]] | None = None

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "DPWATCH_" + self.key.upper().replace("-", "_")

    @property
    def field(self) -> str:
        """Its name among the parsed options."""
        return self.key.replace("-", "_")


@dataclass(frozen=True, slots=True)
class Told:
    """A setting's value, and who said so: `flag`, a variable's name, a file's path or `default`."""

    value: Any
    origin: str


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = {"1": True, "true": True, "0": False, "false": False}
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise ValueError(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


def _one_of(names: Callable[[], Sequence[str]], value: Any) -> str:
    if not isinstance(value, str) or value not in names():
        raise ValueError(value)
    return value


def _seconds(value: Any) -> float:
    seconds = float(value) if isinstance(value, str) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise ValueError(value)
    if not 0.1 <= seconds <= 10:
        raise ValueError(value)
    return float(seconds)


def _port(value: Any) -> int:
    port = int(value) if isinstance(value, str) else value
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 1 << 16:
        raise ValueError(value)
    return port


def _views() -> Sequence[str]:
    from dpwatch.tui.views.registry import VIEWS  # slow to import: only where a view is named

    return [view.name for view in VIEWS]


def _view(value: Any) -> str:
    """A view's name, from that or what the screen says of it: its digit, its title."""
    from dpwatch.tui.views.registry import VIEWS
    from dpwatch.tui.widgets.view import digit

    for index, view in enumerate(VIEWS):
        said = (view.name, view.title, view.short, digit(index) if view.short else "")
        if str(value).casefold() in {each.casefold() for each in said if each}:
            return view.name
    raise ValueError(value)


def _sorts() -> Sequence[str]:
    from dpwatch.tui.widgets.rank_columns import SORTS

    return list(SORTS)


def _words(names: Callable[[], Sequence[str]]) -> str:
    *most, last = names()
    return f"{', '.join(most)} or {last}"


def _themes() -> Sequence[str]:
    return THEMES


def _choice(key: str, default: Any, names: Callable[[], Sequence[str]], help: str) -> Setting:
    return Setting(
        key=key,
        default=default,
        read=partial(_one_of, names),
        allowed=partial(_words, names),
        help=help,
        names=names,
    )


SCREEN = (
    _choice("theme", "dark", _themes, "the screen's colours"),
    Setting(
        key="ascii",
        default=False,
        read=_switch,
        allowed=lambda: "true or false",
        help="draw with ASCII characters alone",
    ),
    Setting(
        key="interval",
        default=0.25,
        read=_seconds,
        allowed=lambda: "seconds from 0.1 to 10",
        help="how often the screen takes in what is new",
    ),
    Setting(
        key="view",
        default="overview",
        read=_view,
        allowed=lambda: f"{_words(_views)}, or a view's digit",
        help="the view to begin with",
        names=_views,
    ),
    _choice("sort", None, _sorts, "the overview's column to sort by at first"),
)
"""What every command with a screen takes."""

WEB = (
    Setting(
        key="port",
        default=0,
        read=_port,
        allowed=lambda: "a port, 0 for any that is free",
        help="where --web listens",
    ),
)
SSH = (
    Setting(
        key="ssh",
        default="ssh",
        read=_text,
        allowed=lambda: "a command and its options",
        help="what `dpwatch ssh` calls",
    ),
    Setting(
        key="remote-dir",
        default=None,
        read=_text,
        allowed=lambda: "a directory",
        help="DPWATCH_RUNTIME_DIR on the hosts of `dpwatch ssh`, where that is set",
    ),
    Setting(
        key="remote-dpwatch",
        default="dpwatch",
        read=_text,
        allowed=lambda: "a path, or a name on the PATH there",
        help="dpwatch on the hosts of `dpwatch ssh`, where it is not on the PATH",
    ),
)
SETTINGS = (*SCREEN, *WEB, *SSH)


def config_file(environ: Mapping[str, str] | None = None) -> tuple[Path, bool]:
    """Where the settings' file is, and whether somebody has named it, so that it must be there."""
    environ = os.environ if environ is None else environ
    if named := environ.get(FILE_VARIABLE):
        return Path(named).expanduser(), True
    base = environ.get("XDG_CONFIG_HOME", "")
    # A relative one is to be ignored, says the specification.
    folder = Path(base) if os.path.isabs(base) else Path("~/.config").expanduser()
    return folder / "dpwatch" / "config.toml", False


def effective(
    options: argparse.Namespace, settings: Sequence[Setting] = SETTINGS
) -> dict[str, Told]:
    """The settings' values, by key.

    Args:
        options: Parsed; a flag that was not given is absent or None.
        settings: Those that are asked for. The file's others have to be known, not good.

    Raises:
        CommandError: A value is none, or the file can't be read.
    """
    path, must_be = config_file()
    table = _from_file(path, must_be=must_be)
    return {each.key: _told(each, options, table, path) for each in settings}


def _told(
    setting: Setting, options: argparse.Namespace, table: Mapping[str, Any], path: Path
) -> Told:
    flag = getattr(options, setting.field, None)
    if flag is not None:
        return Told(_read(setting, flag, f"--{setting.key}"), FLAG)
    if said := os.environ.get(setting.variable):
        return Told(_read(setting, said, setting.variable), setting.variable)
    if setting.key in table:
        return Told(_read(setting, table[setting.key], f"{path}: {setting.key}"), str(path))
    return Told(setting.default, DEFAULT)


def _read(setting: Setting, value: Any, where: str) -> Any:
    try:
        return setting.read(value)
    except ValueError:
        raise CommandError(f"{where} = {value!r}: should be {setting.allowed()}") from None


def _from_file(path: Path, *, must_be: bool) -> dict[str, Any]:
    """The file's keys and values, none where it need not be there and is not."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not must_be:
            return {}
        raise CommandError(f"there is no {path}, which {FILE_VARIABLE} names") from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise CommandError(f"can't read {path}: {why}") from None
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table = {key.replace("_", "-"): value for key, value in tomllib.loads(text).items()}
    except tomllib.TOMLDecodeError as error:
        raise CommandError(f"{path} is no TOML: {error}") from None
    known = [setting.key for setting in SETTINGS]
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, 1)
            guess = f"do you mean {near[0]!r}? " if near else ""
            raise CommandError(f"{path}: unknown key {key!r}; {guess}there are: {', '.join(known)}")
    return table
