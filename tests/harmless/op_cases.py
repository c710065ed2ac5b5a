"""Torch's own samples as cases: operators, foreach functions, modules, optimizers.

A case makes its samples anew each time, from the same seed, so that nothing of one run can reach
another. A sample is a function that is given an outermost module and returns what came of it.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal import common_methods_invocations as invocations
    from torch.testing._internal.common_modules import module_db
    from torch.testing._internal.common_optimizers import optim_db

from tests.harmless.describe_text import without_addresses
from tests.harmless.step_kinds import Body

Sample = Callable[[Body], Any]

DTYPES = (torch.float32, torch.bfloat16, torch.complex64)
OPTIMIZER_STEPS = 14
"""More than the steps that a new probe all looks at."""

UNINITIALISED = frozenset({
    "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided",
    "resize_", "resize_as_",
})  # fmt: skip
"""Operators whose result is whatever was in memory: of these the bits are not compared."""


@dataclass(frozen=True)
class Case:
    """What is compared as one row.

    Attributes:
        name: Without the part: `prod/float32`.
        samples: Makes them anew.
        bits: The results' bits are compared too.
    """

    name: str
    samples: Callable[[], list[Sample]] = field(repr=False)
    bits: bool = True


def all_cases() -> Iterator[Case]:
    """Every case, in an order that is always the same."""
    for info in invocations.op_db:
        for dtype in DTYPES:
            if dtype in info.dtypes:
                name = f"{info.full_name}/{_name(dtype)}"
                bits = info.full_name not in UNINITIALISED
                yield Case(name, partial(_op_samples, info, dtype), bits)
    for info in _foreach_infos():
        for dtype in DTYPES:
            if dtype in info.dtypes:
                yield Case(f"{info.name}/{_name(dtype)}", partial(_op_samples, info, dtype))
    for info in module_db:
        for dtype in DTYPES[:2]:
            yield Case(f"{info.name}/{_name(dtype)}", partial(_module_samples, info, dtype))
    for info in optim_db:
        for impl in ("forloop", *info.supported_impls):
            yield Case(f"optim.{info.optim_cls.__name__}/{impl}", partial(_updates, info, impl))


def seed(number: int) -> None:
    """Seeds every generator that a sample may draw from."""
    torch.default_generator.manual_seed(number)  # `torch.manual_seed` takes milliseconds
    random.seed(number)
    np.random.seed(number)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _foreach_infos() -> list[Any]:
    names = [name for name in vars(invocations) if name.startswith("foreach_") and "_op_db" in name]
    return [info for name in sorted(names) for info in getattr(invocations, name)]


# -- operators ----------------------------------------------------------------------------------


def _op_samples(info: Any, dtype: torch.dtype) -> list[Sample]:
    differentiable = info.supports_autograd and dtype in info.supported_backward_dtypes("cpu")
    seed(0)
    made = _made(lambda: info.sample_inputs("cpu", dtype, requires_grad=differentiable))
    found: list[Sample] = [partial(_call, info, inputs) for inputs in made]
    if inplace := info.get_inplace():
        seed(0)
        made = _made(lambda: info.sample_inputs("cpu", dtype, requires_grad=False))
        found += [partial(_call, inplace, inputs) for inputs in made]
    if dtype is torch.float32 and info.error_inputs_func is not None:
        seed(0)
        made = _made(lambda: info.error_inputs("cpu"))
        found += [partial(_call, info, error.sample_input) for error in made]
    return found


def _made(make: Callable[[], Any]) -> list[Any]:
    """What a generator of torch's samples gives, as far as it comes on this machine."""
    found = []
    with contextlib.suppress(Exception):  # torch's own tests skip what can't be had here
        for each in make():
            found.append(each)  # noqa: PERF402 - those before an error count
    return found


def _call(function: Callable[..., Any], inputs: Any, body: Body) -> Any:
    arguments = (inputs.input, *inputs.args)
    outputs = body(lambda: function(*arguments, **inputs.kwargs))
    return _differentiated(outputs, (arguments, inputs.kwargs))


def _differentiated(outputs: Any, inputs: Any) -> dict[str, Any]:
    """Backward from all outputs, with gradients that are always the same."""
    roots = [t for t in tree_leaves(outputs) if isinstance(t, torch.Tensor) and t.requires_grad]
    if roots:
        torch.autograd.backward(roots, [_root_gradient(root) for root in roots])
    leaves = [t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor)]
    return {"output": outputs, "grad": [leaf.grad for leaf in leaves if leaf.is_leaf]}


def _root_gradient(root: torch.Tensor) -> torch.Tensor:
    if root.layout is not torch.strided or type(root) is not torch.Tensor or root.is_nested:
        return torch.ones_like(root)
    generator = torch.Generator().manual_seed(7)
    return torch.randn(root.shape, dtype=root.dtype, generator=generator)


# -- modules ------------------------------------------------------------------------------------


def _module_samples(info: Any, dtype: torch.dtype) -> list[Sample]:
    found: list[Sample] = []
    for training in (True, False):
        seed(0)
        made = _made(
            lambda training=training: info.module_inputs_func(
                info, "cpu", dtype, requires_grad=True, training=training
            )
        )
        found += [partial(_train_module, info, each, dtype, training) for each in made]
    return found


def _train_module(info: Any, inputs: Any, dtype: torch.dtype, training: bool, body: Body) -> Any:
    made = inputs.constructor_input
    module = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
    given = inputs.forward_input
    outputs = module(*given.args, **given.kwargs)  # itself the outermost module
    told = _differentiated(outputs, (given.args, given.kwargs))
    return {
        **told,
        "state": dict(module.state_dict()),
        "params": [p.grad for p in module.parameters()],
    }


# -- optimizers ---------------------------------------------------------------------------------


def _updates(info: Any, impl: str) -> list[Sample]:
    found: list[Sample] = []
    for inputs in _made(lambda: info.optim_inputs_func(device="cpu")):
        kwargs = {**inputs.kwargs, **({} if impl == "forloop" else {impl: True})}
        if impl == "forloop" and "foreach" in info.supported_impls:
            kwargs["foreach"] = False
        train = _differentiate_updates if impl == "differentiable" else _train_with
        found.append(partial(train, info, kwargs))
    return found


def _differentiate_updates(info: Any, kwargs: dict[str, Any], body: Body) -> Any:
    """Backward through the optimizer's own steps."""
    leaf = torch.randn(5, 3, requires_grad=True)
    weight = leaf.clone()
    optimizer = info.optim_cls([weight], **kwargs)
    for _ in range(3):
        loss = body(lambda: weight.square().sum())
        (weight.grad,) = torch.autograd.grad(loss, weight, create_graph=True)
        optimizer.step(lambda loss=loss: loss)
    weight.sum().backward()
    return {"weight": weight, "grad": leaf.grad}


def _train_with(info: Any, kwargs: dict[str, Any], body: Body) -> Any:
    """Some real steps, each of which is a step to the probe."""
    seed(3)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 8, bias=False), torch.nn.Tanh(), torch.nn.Linear(8, 3, bias=False)
    )
    sparse = info.only_supports_sparse_grads
    if sparse:
        model = torch.nn.Sequential(torch.nn.Embedding(10, 4, sparse=True))
    optimizer = info.optim_cls(model.parameters(), **kwargs)
    given = torch.randint(10, (6,)) if sparse else torch.randn(6, 5)
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(given).square().mean()
        loss.backward()
        losses.append(loss.detach())
        return loss

    for _ in range(OPTIMIZER_STEPS):
        if info.step_requires_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return {"loss": losses, "params": list(model.parameters()), "state": optimizer.state_dict()}


def outcome(sample: Sample, body: Body, number: int) -> dict[str, Any]:
    """Runs a sample: what came of it, the error it raised, what it warned of, what it drew."""
    seed(number)
    told: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            told["result"] = sample(body)
        except Exception as error:  # noqa: BLE001 - it is compared
            told["error"] = without_addresses(f"{type(error).__name__}: {error}")
    told["warnings"] = [f"{each.category.__name__}: {each.message}" for each in heard]
    told["generator"] = torch.get_rng_state()
    return told
