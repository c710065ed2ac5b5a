"""Arrays of 8 bytes a number, and how they travel: as their bytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


class Ints(array):  # type: ignore[type-arg]  # not subscriptable before Python 3.12
    """Integers of 8 bytes."""

    __slots__ = ()

    def __new__(cls, values: Iterable[int] = ()) -> Self:  # noqa: D102
        return super().__new__(cls, "q", values)  # type: ignore[return-value]


class Floats(array):  # type: ignore[type-arg]
    """Floats of 8 bytes."""

    __slots__ = ()

    def __new__(cls, values: Iterable[float] = ()) -> Self:  # noqa: D102
        return super().__new__(cls, "d", values)  # type: ignore[return-value]


def packed(value: Any) -> Any:
    """What msgspec encodes an array as: its bytes (an `enc_hook`)."""
    if isinstance(value, array):
        return value.tobytes()
    raise NotImplementedError(f"no encoding of {type(value)}")


def unpacked(kind: Any, value: Any) -> Any:
    """The array that was encoded as these bytes (a `dec_hook`)."""
    if kind not in (Ints, Floats) or not isinstance(value, bytes):
        raise NotImplementedError(f"no decoding of {kind}")
    found = kind()
    found.frombytes(value)
    return found
