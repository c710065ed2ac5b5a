"""What is installed: dpwatch, its dependencies, and which Pythons have it and torch."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

import dpwatch
from dpwatch.cli.checks.check import NOTE, OK, TROUBLE, Check
from dpwatch.cli.checks.child import ask

OLDEST_PYTHON = (3, 10)
LOOK_S = 10.0
"""How long another Python may take to answer."""

_WHERE = "import json, dpwatch; print(json.dumps({'file': dpwatch.__file__}))"
_LOOK = """\
import json, sys
from importlib.util import find_spec
print(json.dumps({name: find_spec(name) is not None for name in ("torch", "dpwatch")}))
"""


def checks() -> Iterator[Check]:
    """This dpwatch, its dependencies, this Python, and the Pythons on the PATH."""
    yield itself()
    yield packages()
    yield python()


def itself() -> Check:
    """This dpwatch, and whether hubs and ranks, which start elsewhere, import the same one."""
    version, place = dpwatch.__version__, Path(dpwatch.__file__).parent
    text = f"{version}, in {place}"
    told, why = ask([sys.executable, "-c", _WHERE], timeout_s=LOOK_S)
    if "file" not in told:
        text += f": {sys.executable} does not find it from elsewhere ({why})"
        return Check("dpwatch", TROUBLE, text, "install it with pip", version)
    if (theirs := Path(told["file"]).parent) != place:
        text += f": hubs and ranks import the one in {theirs}"
        return Check("dpwatch", NOTE, text, "install this one with pip, or run that one", version)
    return Check("dpwatch", OK, text, value=version)


def packages() -> Check:
    """The versions of the viewer's dependencies, against dpwatch's requirements."""
    told, wrong = [], []
    for name, limits in requirements().items():
        version = version_of(name)
        if version is None:
            wrong.append(f"{name} is missing")
        elif not within(version, limits):
            wrong.append(f"{name} {version} is not {limits}")
        else:
            told.append(f"{name} {version}")
    if wrong:
        return Check("packages", TROUBLE, ", ".join(wrong), "reinstall dpwatch with pip")
    if not told:
        return Check("packages", NOTE, "not checked: dpwatch was not installed by pip")
    return Check("packages", OK, ", ".join(told))


def python() -> Check:
    """This Python, and whether `python` on the PATH is another one."""
    version = ".".join(map(str, sys.version_info[:3]))
    here = f"{version}, {sys.executable}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Check("python", TROUBLE, f"{here}: too old", "use Python 3.10 or newer", version)
    for other in others():
        told, _ = ask([other, "-c", _LOOK], timeout_s=LOOK_S)
        if told.get("torch") and not told.get("dpwatch"):
            return Check(
                "python",
                NOTE,
                f"{here}; {other} on the PATH has torch but no dpwatch",
                f"to watch training there: {other} -m pip install {shlex.quote(source())}",
                version,
            )
    return Check("python", OK, here, value=version)


def source() -> str:
    """What to pip install to get this same dpwatch: its checkout or wheel, else its name.

    The name alone would be looked up on a public index, where it may be someone else's package.
    """
    try:
        installed = metadata.distribution("dpwatch")
        told = json.loads(installed.read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):  # run from a checkout
        return str(Path(dpwatch.__file__).parents[1])
    url = str(told.get("url", ""))
    if url.startswith("file://"):
        return unquote(urlsplit(url).path)
    if vcs := told.get("vcs_info", {}).get("vcs"):
        return f"{vcs}+{url}"
    return url or f"dpwatch=={installed.version}"


def others() -> list[str]:
    """The Pythons behind `python`, `python3` and `torchrun` on the PATH, except this one."""
    found: dict[Path, str] = {}
    for name in ("python", "python3", "torchrun"):
        path = shutil.which(name)
        if path is None:
            continue
        if name == "torchrun":
            path = shutil.which("python", path=str(Path(path).parent)) or ""
        if path and Path(path).parent != Path(sys.executable).parent:
            found.setdefault(Path(path).parent, path)
    return list(found.values())


def requirements(extra: str = "") -> dict[str, str]:
    """Dpwatch's requirements, as `{"pyzmq": ">=26"}`: of an extra, or of the base install."""
    try:
        asked = metadata.requires("dpwatch") or []
    except metadata.PackageNotFoundError:  # run from a checkout
        return {}
    found = {}
    for line in asked:
        requirement, _, condition = line.partition(";")
        of_extra = re.search(r"extra\s*==\s*['\"](\w+)", condition)
        name = re.match(r"[\w.-]+", requirement)
        if not _for_this_python(condition):
            continue
        if name and (of_extra[1] if of_extra else "") == extra:
            found[name[0]] = requirement[name.end() :].strip()
    return found


def _for_this_python(condition: str) -> bool:
    """Whether a marker such as `python_version < '3.11'` is true here; true if there is none."""
    found = re.search(r"python_version\s*(<|>=)\s*['\"]([\d.]+)", condition)
    if found is None:
        return True
    older = sys.version_info[:2] < _numbers(found[2])
    return older if found[1] == "<" else not older


def version_of(name: str) -> str | None:
    """An installed distribution's version."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def within(version: str, limits: str) -> bool:
    """Whether a version is within `>=A,<B`; other specifiers are ignored."""
    mine = _numbers(version)
    for limit in limits.split(","):
        if limit.startswith(">=") and mine < _numbers(limit[2:]):
            return False
        if limit.startswith("<") and not limit.startswith("<=") and mine >= _numbers(limit[1:]):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """`2.6.0+cpu` as (2, 6): trailing zeros are dropped, so that 2.6 equals 2.6.0."""
    numbers = re.match(r"\d+(?:\.\d+)*", version.strip())
    parts = [int(part) for part in numbers[0].split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
