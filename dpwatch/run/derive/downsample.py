"""Downsamples many curves at once with numpy, keeping their peaks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpwatch.run.state.curves import Envelope, interval_width
from dpwatch.wire.arrays import Floats, Ints

Points = tuple[Ints, Floats]


def downsample(curves: Sequence[Envelope], points: int) -> list[Points]:
    """`Envelope.downsample` of each curve; those of equal length, usually most, together."""
    lengths: dict[int, list[int]] = {}
    for place, curve in enumerate(curves):
        lengths.setdefault(len(curve.steps), []).append(place)
    found: list[Points] = [(Ints(), Floats())] * len(curves)
    for length, places in lengths.items():
        alike = [curves[place] for place in places]
        some = _together(alike, length, points) if length > points else map(_all_of, alike)
        for place, few_points in zip(places, some, strict=True):
            found[place] = few_points
    return found


def _all_of(curve: Envelope) -> Points:
    return Ints(curve.steps), Floats(curve.values)


def _together(curves: Sequence[Envelope], length: int, points: int) -> list[Points]:
    """Downsamples curves of one length."""
    width = interval_width(length, points)
    parts = -(-length // width)
    values = np.array([curve.values for curve in curves])
    steps = np.array([curve.steps for curve in curves])
    # Padded with the last value, which is found at its own index first.
    filled = np.pad(values, ((0, 0), (0, parts * width - length)), mode="edge")
    split = filled.reshape(len(curves), parts, width)
    ends = np.stack([split.argmin(axis=2), split.argmax(axis=2)], axis=2)
    ends.sort(axis=2)
    peaks = (ends + np.arange(parts)[:, None] * width).reshape(len(curves), 2 * parts)
    kept = np.pad(peaks, ((0, 0), (1, 1)), constant_values=((0, 0), (0, length - 1)))
    once = np.diff(kept, axis=1, prepend=-1) > 0
    found = []
    for i in range(len(curves)):
        at = kept[i][once[i]]
        pair = (Ints(), Floats())
        pair[0].frombytes(steps[i][at].tobytes())
        pair[1].frombytes(values[i][at].tobytes())
        found.append(pair)
    return found
