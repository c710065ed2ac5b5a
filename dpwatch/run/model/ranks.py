"""Rank numbers as text."""

from __future__ import annotations

from collections.abc import Iterable


def name_ranks(ranks: Iterable[int], most: int | None = 8) -> str:
    """Ranks as ranges, at most so many of these.

    >>> name_ranks([7]), name_ranks([9, 0, 1, 2]), name_ranks([0, 2, 4, 5], most=2)
    ('rank 7', 'ranks 0-2, 9', 'ranks 0, 2 and 2 more')
    """
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1][1:] = [rank]
        else:
            parts.append([rank])
    text = ", ".join("-".join(map(str, part)) for part in parts[:most])
    rest = sum(part[-1] - part[0] + 1 for part in parts[most:]) if most is not None else 0
    many = len(parts) > 1 or any(len(part) > 1 for part in parts)
    return f"{'ranks' if many else 'rank'} {text}" + (f" and {rest} more" if rest else "")
