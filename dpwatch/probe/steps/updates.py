"""Detects that parameters were updated, or gradients dropped, without a hook.

torch counts a tensor's in-place changes (`_version`), and `zero_grad` drops its `.grad`. One
trained parameter stands for all. Nothing is computed, and both are read without calling any code of
the script.

The parameter is looked up again each time, by its place in an optimizer or a module: a weak
reference to it would make `torch.utils.swap_tensors` raise.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch

from dpwatch.probe.steps.tensors import is_plain, local, no_torch_function

MOST_CANDIDATES = 64
"""Parameters examined to find one that gets gradients."""

MOST_TRIES = 8


class ParameterPlace(NamedTuple):
    """Location of a parameter: in a group of an optimizer, or under a name in a module."""

    owner: weakref.ref[Any]
    group: int
    key: int | str

    def parameter(self) -> torch.Tensor | None:
        """The parameter at that location now."""
        owner = self.owner()
        if owner is None:
            return None
        if isinstance(self.key, str):
            found: torch.Tensor | None = owner._parameters.get(self.key)
            return found
        groups = owner.param_groups
        if self.group >= len(groups) or self.key >= len(groups[self.group]["params"]):
            return None
        found = groups[self.group]["params"][self.key]
        return found


def places(
    optimizers: Iterable[Any], models: Iterable[torch.nn.Module]
) -> Iterator[ParameterPlace]:
    """Locations of parameters, those in optimizers first."""
    for optimizer in optimizers:
        owner = weakref.ref(optimizer)
        for g, group in enumerate(optimizer.param_groups):
            for i in range(len(group["params"])):
                yield ParameterPlace(owner, g, i)
    for model in models:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    yield ParameterPlace(weakref.ref(module), 0, name)


class WatchedParameter:
    """One parameter, as it was after the last backward."""

    def __init__(self) -> None:
        self._place: ParameterPlace | None = None
        self._tries = 0
        self._version = -1
        self._gradient_version: int | None = None

    def mark(self, among: Iterable[ParameterPlace]) -> None:
        """Remembers the parameter's state after a backward.

        Args:
            among: Candidates, if none has been chosen yet.
        """
        with no_torch_function():
            parameter = self._parameter()
            if parameter is None:
                parameter = self._choose(among)
            if parameter is None:
                self._version = -1
                return
            self._version = _version(parameter)
            gradient = parameter.grad
            self._gradient_version = None if gradient is None else _version(gradient)

    def was_updated(self) -> bool:
        """Whether the parameter has changed since then; False if unknown."""
        if self._version < 0:
            return False
        with no_torch_function():
            parameter = self._parameter()
            return parameter is not None and _version(parameter) != self._version

    def lost_gradient(self) -> bool | None:
        """Whether its gradient was dropped since then.

        None if it was changed in place, by a `zero_grad` that keeps it or by clipping.
        """
        if self._version < 0 or self._gradient_version is None:
            return False
        with no_torch_function():
            parameter = self._parameter()
            if parameter is None:
                return None
            gradient = parameter.grad
            if gradient is None:
                return True
            return None if _version(gradient) != self._gradient_version else False

    def _parameter(self) -> torch.Tensor | None:
        return None if self._place is None else self._place.parameter()

    def _choose(self, among: Iterable[ParameterPlace]) -> torch.Tensor | None:
        """Chooses one that has a gradient, else one that may get one."""
        if self._tries >= MOST_TRIES:
            return None
        self._tries += 1
        self._place = chosen = None
        for place in islice(among, MOST_CANDIDATES):
            parameter = place.parameter()
            if parameter is None or not _may_stand_for_all(parameter):
                continue
            if parameter.grad is not None:
                self._place = place
                return parameter
            if chosen is None:
                self._place, chosen = place, parameter
        return chosen


def _may_stand_for_all(parameter: torch.Tensor) -> bool:
    return bool(is_plain(local(parameter)) and parameter.requires_grad and parameter.is_leaf)


def _version(tensor: torch.Tensor) -> int:
    try:
        return int(local(tensor)._version)
    except RuntimeError:  # inference tensors have no version
        return -1
