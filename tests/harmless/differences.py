"""What differs between two descriptions, in one line that a person can act on."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

_FORMATS = {"float32": "f", "complex64": "f", "float64": "d", "complex128": "d", "float16": "e"}


def explain(plain: Sequence[str], probed: Sequence[str]) -> str:
    """The first difference of two detailed descriptions (`describe.lines`)."""
    for ours, theirs in zip(plain, probed, strict=False):
        if ours != theirs:
            return _explain_line(ours, theirs)
    return f"{len(plain)} values without the probe, {len(probed)} with it"


def _explain_line(plain: str, probed: str) -> str:
    before, after = _facts(plain), _facts(probed)
    name = plain.split(" ", 1)[0]
    said = [
        f"{key} {before.get(key, '-')} became {after.get(key, '-')}"
        for key in before
        if key not in ("bits", "hex") and before[key] != after.get(key)
    ]
    if before.get("hex") != after.get("hex"):
        kind = next(
            (word for word in plain.split(" ") if word in _FORMATS or word == "bfloat16"), ""
        )
        said.append(_bits(before.get("hex", ""), after.get("hex", ""), kind))
    return f"{name}: {'; '.join(said) or f'{plain} became {probed}'}"


def _facts(line: str) -> dict[str, str]:
    """`key=value` words, and all words without a key together as `type`."""
    words = line.split(" ")
    facts: dict[str, str] = {}
    last = "type"
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if equals and key.isidentifier():
            last, facts[key] = key, value
        else:
            facts[last] = f"{facts.get(last, '')} {word}".strip()
    return facts


def _bits(before: str, after: str, kind: str) -> str:
    old, new = bytes.fromhex(before), bytes.fromhex(after)
    size = 2 if kind == "bfloat16" else struct.calcsize(_FORMATS.get(kind, "B"))
    if len(old) != len(new):
        return f"{len(old)} bytes became {len(new)}"
    wrong = [at for at in range(0, len(old), size) if old[at : at + size] != new[at : at + size]]
    values = [_value(raw[wrong[0] : wrong[0] + size], kind) for raw in (old, new)]
    return (
        f"{len(wrong)} of {len(old) // size} numbers differ, the first at {wrong[0] // size}: "
        f"{values[0]} became {values[1]}"
    )


def _value(raw: bytes, kind: str) -> Any:
    if kind == "bfloat16":
        raw, kind = b"\0\0" + raw, "float32"
    return struct.unpack(_FORMATS.get(kind, "B"), raw)[0]
