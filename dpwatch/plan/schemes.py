"""The schemes by name."""

from __future__ import annotations

from dpwatch.plan import model_parallel, replicated, servers, sharded, zero
from dpwatch.plan.scheme import Scheme

_SCHEMES: dict[str, Scheme] = {
    **replicated.SCHEMES,
    **servers.SCHEMES,
    **model_parallel.SCHEMES,
    **zero.SCHEMES,
    **sharded.SCHEMES,
}


def scheme(strategy: str) -> Scheme:
    """The theory of a strategy.

    Raises:
        LookupError: There is none of that name.
    """
    if strategy not in _SCHEMES:
        raise LookupError(f"no theory of {strategy!r}; there is one of {', '.join(_SCHEMES)}")
    return _SCHEMES[strategy]
