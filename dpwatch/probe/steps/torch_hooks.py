"""Where the probe hooks into torch: five places, each restored on close.

| event | place |
|---|---|
| forward | `torch.nn.Module.__call__`, the outermost call of a thread |
| backward | `_engine_run_backward`, which `Tensor.backward` and `torch.autograd.grad` call |
| optimizer | torch's global optimizer step hooks |
| data | `_BaseDataLoaderIter.__next__` |
| scaled losses | `torch.amp.GradScaler.scale` |

(Forward hooks would break graphs of torch.compile, and full backward hooks cost half a step.
`torch.autograd.backward` and `grad` themselves are compared by identity in dynamo and in
`__torch_function__`, so they are not replaced.)

A thread without a lane passes straight through. Exceptions of the wrapped call propagate unchanged;
an error in the probe itself never propagates but turns the probe off. Under torch.compile dynamo
sees a constant first, so nothing of the probe is traced or guarded. Where dynamo would otherwise
compile the probe's own code, it is told to skip that (`dynamo.leave_alone`).

The hooks keep the state to restore in their own frame, and their `finally` blocks start with plain
assignments: an interrupt delivered in between finds nothing half done.
"""

from __future__ import annotations

import contextvars
import functools
import logging
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, cast

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data.dataloader import _BaseDataLoaderIter

from dpwatch.probe import dynamo
from dpwatch.probe.foreign import own_fault
from dpwatch.probe.stack.frameworks import originals
from dpwatch.probe.steps.lanes import KEPT, Events, Lane, here
from dpwatch.probe.steps.tracker import hook_codes

Fail = Callable[[BaseException], None]
Newcomer = Callable[[], Lane | None]
"""Returns a lane for the calling thread, if it is one that trains."""

_compiling = torch.compiler.is_dynamo_compiling


class Hooks:
    """The hooks, installed from construction until `close`."""

    def __init__(self, newcomer: Newcomer, fail: Fail) -> None:
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        self._handles: list[Any] = []
        try:
            call = torch.nn.Module.__call__
            make = _forward if _is_torchs_own(call) else _forward_over
            ours = make(call, fail)
            for name in ("__call__", "_wrapped_call_impl"):  # pickle finds the first by the second
                if vars(torch.nn.Module).get(name) is call:
                    self._replace(torch.nn.Module, name, ours)
            self._replaced += dynamo.rename(call, ours)
            self._replace_backward(newcomer, fail)
            for owner, name, wrap in (
                (_BaseDataLoaderIter, "__next__", _next_batch),
                (torch.amp.GradScaler, "scale", _scale),
            ):
                self._replace(owner, name, wrap(vars(owner)[name], fail))
            begins, ends = _optimizer(fail)
            self._handles.append(register_optimizer_step_pre_hook(begins))
            self._handles.append(register_optimizer_step_post_hook(ends))
            dynamo.leave_alone(begins, ends, *(ours for *_, ours in self._replaced))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Restores everything, except where somebody has since patched over our hook.

        Hooks that stay in place, or that somebody holds a reference to, no longer see any lane, not
        even a later probe's.
        """
        for handle in self._handles:
            handle.remove()
        for *_, ours in self._replaced:
            _silence(ours)
        for owner, name, original, ours in reversed(self._replaced):
            if vars(owner).get(name) is ours:
                setattr(owner, name, original)
        self._handles.clear()
        self._replaced.clear()

    def _replace(self, owner: Any, name: str, ours: Callable[..., Any]) -> Callable[..., Any]:
        original = vars(owner)[name]
        setattr(owner, name, ours)
        self._replaced.append((owner, name, original, ours))
        hook_codes.add(ours.__code__)
        if isinstance(original, FunctionType):
            originals[ours.__code__] = original.__code__
        return ours

    def _replace_backward(self, newcomer: Newcomer, fail: Fail) -> None:
        graph = torch.autograd.graph
        original = vars(graph).get("_engine_run_backward")
        if original is not None and original is vars(torch.autograd).get("_engine_run_backward"):
            make = _backward if _is_torchs_engine(original) else _backward_over
            ours = make(cast("Callable[..., Any]", original), newcomer, fail)
            for module in (graph, torch.autograd):  # make_fx saves and restores the first
                self._replace(module, "_engine_run_backward", ours)
        else:  # a different torch: `torch.autograd.grad` is not observed
            plain = torch.autograd.backward
            self._replace(torch.autograd, "backward", _plain_backward(plain, newcomer, fail))


class _NoLane:
    """Replaces `here` in hooks that have been closed."""

    lane = None


def _silence(hook: Any) -> None:
    """Hides all lanes from the hook by replacing its closure variable, at no cost per call."""
    for cell in hook.__closure__ or ():
        inner = cell.cell_contents
        if inner is here:
            cell.cell_contents = _NoLane
        elif isinstance(inner, FunctionType) and inner.__globals__ is globals():
            _silence(inner)


def _is_torchs_own(call: Any) -> bool:
    """Whether it does exactly what `_forward` does in its place."""
    code = getattr(call, "__code__", None)
    return getattr(code, "co_names", ()) == ("_compiled_call_impl", "_call_impl")


def _forward(original: Callable[..., Any], fail: Fail) -> Callable[..., Any]:
    local = here

    @functools.wraps(original)
    def __call__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _compiling() or (lane := local.lane) is None or lane.in_module:
            # Same code as torch's own; calling that would add a frame to every module call.
            if self._compiled_call_impl is not None:
                return self._compiled_call_impl(*args, **kwargs)
            return self._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        before, done = KEPT, False
        try:
            lane.in_module = True
            try:
                before = lane.steps.module_begins(lane, self, args, kwargs)
            except Exception as error:  # noqa: BLE001 - never into the user's code
                own_fault(error, fail)
            if self._compiled_call_impl is not None:
                result = self._compiled_call_impl(*args, **kwargs)
            else:
                result = self._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
            done = True
            return result
        finally:
            lane.in_module = lane.over or lane.sampled_out
            if before != KEPT:
                _leave(lane, before, done, fail)

    return __call__


def _forward_over(original: Callable[..., Any], fail: Fail) -> Callable[..., Any]:
    """Like `_forward`, if somebody else has replaced torch's own, or this torch differs."""
    local = here

    @functools.wraps(original)
    def __call__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _compiling() or (lane := local.lane) is None or lane.in_module:
            return original(self, *args, **kwargs)
        before, done = KEPT, False
        try:
            lane.in_module = True
            try:
                before = lane.steps.module_begins(lane, self, args, kwargs)
            except Exception as error:  # noqa: BLE001
                own_fault(error, fail)
            result = original(self, *args, **kwargs)
            done = True
            return result
        finally:
            lane.in_module = lane.over or lane.sampled_out
            if before != KEPT:
                _leave(lane, before, done, fail)

    return __call__


def _notify_skipped_backward(steps: Events, fail: Fail) -> None:
    try:
        steps.skipped_backward()
    except Exception as error:  # noqa: BLE001
        own_fault(error, fail)


def _leave(lane: Lane, before: int, done: bool, fail: Fail) -> None:
    try:
        lane.leave(before)
        if not done:
            lane.steps.pass_raised(lane)
    except Exception as error:  # noqa: BLE001
        own_fault(error, fail)


def _is_torchs_engine(run: Any) -> bool:
    """Whether it does exactly what `_backward` does in its place."""
    names = getattr(getattr(run, "__code__", None), "co_names", ())
    return names == (
        *("log", "getEffectiveLevel", "logging", "DEBUG"),
        *("_register_logging_hooks_on_whole_graph", "torch", "_C", "_stash_obj_in_tls"),
        *("contextvars", "copy_context", "Variable", "_execution_engine", "run_backward"),
        "_remove_obj_from_tls",
    )


def _backward(original: Callable[..., Any], newcomer: Newcomer, fail: Fail) -> Callable[..., Any]:
    """Replaces torch's own without an extra frame: warnings count frames to find the script."""
    local, log, variable = here, torch.autograd.graph.log, torch.autograd.Variable
    stash, unstash = torch._C._stash_obj_in_tls, torch._C._remove_obj_from_tls

    @functools.wraps(original)
    def _engine_run_backward(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if _compiling() or log.getEffectiveLevel() <= logging.DEBUG:
            return original(t_outputs, *args, **kwargs)
        lane = local.lane
        if lane is None or lane.over:
            lane = newcomer()
        watched = lane if lane is not None and not lane.sampled_out else None
        before, inside, done = KEPT, False, False
        try:
            if watched is not None:
                inside = watched.in_module
                try:
                    before = watched.steps.backward_begins(watched)
                except Exception as error:  # noqa: BLE001
                    own_fault(error, fail)
                watched.in_module = True
            stash("context", contextvars.copy_context())
            try:
                result = variable._execution_engine.run_backward(t_outputs, *args, **kwargs)
            finally:
                unstash("context")
            done = True
            return result
        finally:
            if watched is not None:
                watched.in_module = inside or watched.over or watched.sampled_out
                given = args[0] if args else ()
                keeps = kwargs.get("accumulate_grad", True)
                try:
                    watched.steps.backward_ends(
                        watched, before, t_outputs, given, done=done, keeps=keeps
                    )
                except Exception as error:  # noqa: BLE001
                    own_fault(error, fail)
            elif lane is not None and done:
                lane.steps.skipped_backwards += 1
                if lane.steps.skipped_backwards >= lane.steps.notify_after:
                    _notify_skipped_backward(lane.steps, fail)

    return _engine_run_backward


def _backward_over(
    original: Callable[..., Any], newcomer: Newcomer, fail: Fail
) -> Callable[..., Any]:
    """Like `_backward`, if somebody else has replaced torch's own, or this torch differs."""
    local = here
    around = _around_backward(newcomer, fail)

    @functools.wraps(original)
    def engine_run_backward(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if _compiling():
            return original(t_outputs, *args, **kwargs)
        lane = local.lane
        if lane is not None and lane.sampled_out and not lane.over:
            result = original(t_outputs, *args, **kwargs)
            steps = lane.steps
            steps.skipped_backwards += 1
            if steps.skipped_backwards >= steps.notify_after:
                _notify_skipped_backward(steps, fail)
            return result
        keeps = kwargs.get("accumulate_grad", True)
        given = args[0] if args else ()
        return around(t_outputs, given, keeps, original, (t_outputs, *args), kwargs)

    return engine_run_backward


def _plain_backward(
    original: Callable[..., Any], newcomer: Newcomer, fail: Fail
) -> Callable[..., Any]:
    around = _around_backward(newcomer, fail)
    one = torch.ones(())

    @functools.wraps(original)
    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
        if _compiling():
            return original(tensors, grad_tensors, *args, **kwargs)
        roots = (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)
        given = [one] * len(roots) if grad_tensors is None else ()
        return around(roots, given, True, original, (tensors, grad_tensors, *args), kwargs)

    return backward


def _around_backward(newcomer: Newcomer, fail: Fail) -> Callable[..., Any]:
    local = here

    def around(
        roots: Sequence[Any],
        gradients: Sequence[Any],
        keeps: bool,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        lane = local.lane
        if lane is None or lane.over:
            lane = newcomer()
            if lane is None:
                return original(*args, **kwargs)
        steps = lane.steps
        if lane.sampled_out:
            result = original(*args, **kwargs)
            steps.skipped_backwards += 1
            if steps.skipped_backwards >= steps.notify_after:
                _notify_skipped_backward(steps, fail)
            return result
        before, inside, done = KEPT, lane.in_module, False
        try:
            try:
                before = steps.backward_begins(lane)
            except Exception as error:  # noqa: BLE001
                own_fault(error, fail)
            lane.in_module = True
            result = original(*args, **kwargs)
            done = True
            return result
        finally:
            lane.in_module = inside or lane.over or lane.sampled_out
            try:
                steps.backward_ends(lane, before, roots, gradients, done=done, keeps=keeps)
            except Exception as error:  # noqa: BLE001
                own_fault(error, fail)

    dynamo.leave_alone(around)
    return around


def _next_batch(original: Callable[..., Any], fail: Fail) -> Callable[..., Any]:
    local = here

    @functools.wraps(original)
    def __next__(self: Any) -> Any:
        if _compiling() or (lane := local.lane) is None or lane.over or lane.sampled_out:
            return original(self)
        before, inside = KEPT, lane.in_module
        try:
            lane.in_module = True
            try:
                before = lane.steps.data_begins(lane)
            except Exception as error:  # noqa: BLE001
                own_fault(error, fail)
            return original(self)
        finally:
            lane.in_module = inside or lane.over or lane.sampled_out
            if before != KEPT:
                _leave(lane, before, True, fail)

    return __next__


def _scale(original: Callable[..., Any], fail: Fail) -> Callable[..., Any]:
    local = here

    @functools.wraps(original)
    def scale(self: torch.amp.GradScaler, outputs: Any) -> Any:
        scaled = original(self, outputs)
        if _compiling() or (lane := local.lane) is None:
            return scaled
        if (
            lane is lane.steps.main
            and not lane.sampled_out
            and not lane.over
            and scaled is not outputs
        ):
            try:
                lane.steps.scaled(self, scaled)
            except Exception as error:  # noqa: BLE001
                own_fault(error, fail)
        return scaled

    return scale


def _optimizer(fail: Fail) -> tuple[Callable[..., None], Callable[..., None]]:
    local = here

    def begins(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if _compiling() or (lane := local.lane) is None or lane.over:
            return
        try:
            if lane.sampled_out:
                lane.steps.skipped_optimizer_begins(lane)
            else:
                lane.steps.optimizer_begins(lane, optimizer)
        except Exception as error:  # noqa: BLE001
            own_fault(error, fail)

    def ends(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if _compiling() or (lane := local.lane) is None or lane.over:
            return
        try:
            if lane.sampled_out:
                lane.steps.skipped_optimizer_ends(lane)
            else:
                lane.steps.optimizer_ends(lane, optimizer)
        except Exception as error:  # noqa: BLE001
            own_fault(error, fail)

    return begins, ends
