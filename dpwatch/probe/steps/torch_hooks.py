"""Where the probe looks into torch: five places, each put back as it was on close.

| event | place |
|---|---|
| forward | `torch.nn.Module.__call__`, the outermost call of a thread |
| backward | `_engine_run_backward`, which `Tensor.backward` and `torch.autograd.grad` call |
| optimizer | torch's global optimizer step hooks |
| data | `_BaseDataLoaderIter.__next__` |
| scaled losses | `torch.amp.GradScaler.scale` |

(Forward hooks would break graphs of torch.compile, and full-backward hooks cost half a step.
`torch.autograd.backward` and `grad` themselves are compared with what they were, by dynamo and in
`__torch_function__`, so they stay.)

A thread without a lane passes straight through. What the wrapped call raises comes out unchanged;
what goes wrong in the probe itself never comes out, it turns the probe off. Under torch.compile
dynamo sees a constant first, so nothing of the probe is traced or guarded; and it is told to leave
the probe's own code alone where it would otherwise compile that (`dynamo.leave_alone`).

The hooks keep what they have to restore in their own frame, and begin their `finally` with plain
assignments: an interrupt that Python delivers in between finds nothing half done.
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
"""Gives the calling thread a lane, if it is one that trains."""

_compiling = torch.compiler.is_dynamo_compiling


class Hooks:
    """The hooks, in place from construction until `close`."""

    def __init__(self, newcomer: Newcomer, fail: Fail) -> None:
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        self._handles: list[Any] = []
        try:
            call = torch.nn.Module.__call__
            make = _forward if _is_torchs_own(call) else _forward_over
            ours = make(call, fail)
            for name in ("__call__", "_wrapped_call_impl"):  # by the second pickle finds the first
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
        """Puts everything back, except where somebody has since put theirs on top of ours.

        What stays there, or was kept by somebody, sees nothing from now on, of a later probe's
        lanes either.
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
            for module in (graph, torch.autograd):  # make_fx puts back what it finds in the first
                self._replace(module, "_engine_run_backward", ours)
        else:  # another torch: without `torch.autograd.grad`
            plain = torch.autograd.backward
            self._replace(torch.autograd, "backward", _plain_backward(plain, newcomer, fail))


class _Nobody:
    """Stands where `here` was."""

    lane = None


def _silence(hook: Any) -> None:
    """For the hook, no thread has a lane any more; its own variable is set, so it costs nothing."""
    for cell in hook.__closure__ or ():
        inner = cell.cell_contents
        if inner is here:
            cell.cell_contents = _Nobody
        elif isinstance(inner, FunctionType) and inner.__globals__ is globals():
            _silence(inner)


def _is_torchs_own(call: Any) -> bool:
    """Whether it does just what `_forward` does in its place."""
    code = getattr(call, "__code__", None)
    return getattr(code, "co_names", ()) == ("_compiled_call_impl", "_call_impl")


def _forward(original: Callable[..., Any], fail: Fail) -> Callable[..., Any]:
    local = here

    @functools.wraps(original)
    def __call__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _compiling() or (lane := local.lane) is None or lane.in_module:
            # Just what torch's own does: to call that would cost a frame in every module's call.
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
    """As `_forward`, where somebody else has replaced torch's own, or this torch has another."""
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
    """Whether it does just what `_backward` does in its place."""
    names = getattr(getattr(run, "__code__", None), "co_names", ())
    return names == (
        *("log", "getEffectiveLevel", "logging", "DEBUG"),
        *("_register_logging_hooks_on_whole_graph", "torch", "_C", "_stash_obj_in_tls"),
        *("contextvars", "copy_context", "Variable", "_execution_engine", "run_backward"),
        "_remove_obj_from_tls",
    )


def _backward(original: Callable[..., Any], newcomer: Newcomer, fail: Fail) -> Callable[..., Any]:
    """In place of torch's own, with no frame more: warnings count frames to find the script."""
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
    """As `_backward`, where somebody else has replaced torch's own, or this torch has another."""
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
