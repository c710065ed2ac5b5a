"""The viewer's settings: from a flag, else the environment, else a file, else the default.

The file is TOML: `$DPWATCH_CONFIG`, else `$XDG_CONFIG_HOME/dpwatch/config.toml`, else
`~/.config/dpwatch/config.toml`, which need not exist. Key, flag and variable share one name:
`remote-dir`, `--remote-dir`, `DPWATCH_REMOTE_DIR`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from dpwatch.cli.errors import CommandError

FILE_VARIABLE = "DPWATCH_CONFIG"
FLAG, DEFAULT = "flag", "default"


Seconds = Annotated[float, Meta(ge=0.1, le=10)]
Port = Annotated[int, Meta(ge=0, le=65535)]
NonEmpty = Annotated[str, Meta(min_length=1)]
Theme = Literal["dark", "light", "contrast", "safe"]
THEMES: tuple[str, ...] = get_args(Theme)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        key: Its name in the file; the flag and the variable are derived from it.
        type: What its value is converted to, with the allowed range.
        default: Its value where none is given, None for none.
        allowed: The allowed values, in words. Called only when they are shown.
        help: What it is for.
        names: The allowed values one by one, where they can be counted. May be slow to call.
        choose: Turns a value of `type` into one of `names`, or raises ValueError.
    """

    key: str
    type: Any
    default: Any
    allowed: Callable[[], str]
    help: str
    names: Callable[[], Sequence[str]] | None = None
    choose: Callable[[str], str] | None = None

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "DPWATCH_" + self.key.upper().replace("-", "_")

    @property
    def field(self) -> str:
        """Its name among the parsed options."""
        return self.key.replace("-", "_")

    def read(self, value: Any) -> Any:
        """Converts a TOML value, or the text of a flag or variable.

        Raises:
            ValueError: The value is not allowed.
        """
        found = msgspec.convert(value, self.type, strict=not isinstance(value, str))
        return found if self.choose is None else self.choose(found)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A setting's value and its origin: `flag`, a variable's name, a file's path or `default`."""

    value: Any
    origin: str


def _views() -> Sequence[str]:
    from dpwatch.tui.views.registry import VIEWS  # slow to import: only where a view is named

    return [view.name for view in VIEWS]


def _view(given: str) -> str:
    """A view's name, from its name, its title or its digit."""
    from dpwatch.tui.views.registry import VIEWS
    from dpwatch.tui.widgets.view import digit

    for index, view in enumerate(VIEWS):
        shown = (view.name, view.title, view.short, digit(index) if view.short else "")
        if given.casefold() in {each.casefold() for each in shown if each}:
            return view.name
    raise ValueError(given)


def _sorts() -> Sequence[str]:
    from dpwatch.tui.widgets.rank_columns import SORTS

    return list(SORTS)


def _sort(given: str) -> str:
    if given not in _sorts():
        raise ValueError(given)
    return given


def _words(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


SCREEN = (
    Setting(
        key="theme",
        type=Theme,
        default="dark",
        allowed=lambda: _words(THEMES),
        help="the screen's colours",
        names=lambda: THEMES,
    ),
    Setting(
        key="ascii",
        type=bool,
        default=False,
        allowed=lambda: "true or false",
        help="draw with ASCII characters only",
    ),
    Setting(
        key="interval",
        type=Seconds,
        default=0.25,
        allowed=lambda: "seconds from 0.1 to 10",
        help="how often the screen refreshes",
    ),
    Setting(
        key="view",
        type=str,
        default="overview",
        allowed=lambda: f"{_words(_views())}, or a view's digit",
        help="the view to start with",
        names=_views,
        choose=_view,
    ),
    Setting(
        key="sort",
        type=str,
        default=None,
        allowed=lambda: _words(_sorts()),
        help="the column the overview is sorted by at first",
        names=_sorts,
        choose=_sort,
    ),
)
"""Settings of every command with a screen."""

WEB = (
    Setting(
        key="port",
        type=Port,
        default=0,
        allowed=lambda: "a port, 0 for any free one",
        help="the port --web listens on",
    ),
)
SSH = (
    Setting(
        key="ssh",
        type=NonEmpty,
        default="ssh",
        allowed=lambda: "a command and its options",
        help="the ssh command that `dpwatch ssh` runs",
    ),
    Setting(
        key="remote-dir",
        type=NonEmpty,
        default=None,
        allowed=lambda: "a directory",
        help="DPWATCH_RUNTIME_DIR on the hosts of `dpwatch ssh`, if it is set there",
    ),
    Setting(
        key="remote-dpwatch",
        type=NonEmpty,
        default="dpwatch",
        allowed=lambda: "a path, or a name on the PATH there",
        help="dpwatch on the hosts of `dpwatch ssh`, if it is not on the PATH there",
    ),
)
SETTINGS = (*SCREEN, *WEB, *SSH)


def config_file(environ: Mapping[str, str] | None = None) -> tuple[Path, bool]:
    """The settings file, and whether it must exist because `DPWATCH_CONFIG` names it."""
    environ = os.environ if environ is None else environ
    if named := environ.get(FILE_VARIABLE):
        return Path(named).expanduser(), True
    base = environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification says to ignore a relative path.
    folder = Path(base) if os.path.isabs(base) else Path("~/.config").expanduser()
    return folder / "dpwatch" / "config.toml", False


def effective(
    options: argparse.Namespace, settings: Sequence[Setting] = SETTINGS
) -> dict[str, Resolved]:
    """The settings' values, by key.

    Args:
        options: Parsed; a flag that was not given is absent or None.
        settings: Those to read. Other keys of the file must be known; their values aren't checked.

    Raises:
        CommandError: A value is not allowed, or the file can't be read.
    """
    path, must_exist = config_file()
    table = _from_file(path, must_exist=must_exist)
    return {each.key: _told(each, options, table, path) for each in settings}


def _told(
    setting: Setting, options: argparse.Namespace, table: Mapping[str, Any], path: Path
) -> Resolved:
    flag = getattr(options, setting.field, None)
    if flag is not None:
        return Resolved(_read(setting, flag, f"--{setting.key}"), FLAG)
    if said := os.environ.get(setting.variable):
        return Resolved(_read(setting, said, setting.variable), setting.variable)
    if setting.key in table:
        return Resolved(_read(setting, table[setting.key], f"{path}: {setting.key}"), str(path))
    return Resolved(setting.default, DEFAULT)


def _read(setting: Setting, value: Any, where: str) -> Any:
    try:
        return setting.read(value)
    except ValueError:
        raise CommandError(f"{where} = {value!r}: must be {setting.allowed()}") from None


def _from_file(path: Path, *, must_exist: bool) -> dict[str, Any]:
    """The file's keys and values; none where it doesn't exist and needn't."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if not must_exist:
            return {}
        raise CommandError(f"{FILE_VARIABLE} names {path}, which does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise CommandError(f"can't read {path}: {why}") from None
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table = {key.replace("_", "-"): value for key, value in tomllib.loads(text).items()}
    except tomllib.TOMLDecodeError as error:
        raise CommandError(f"{path} is not TOML: {error}") from None
    known = [setting.key for setting in SETTINGS]
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, 1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise CommandError(
                f"{path}: unknown key {key!r}; {guess}known keys: {', '.join(known)}"
            )
    return table
