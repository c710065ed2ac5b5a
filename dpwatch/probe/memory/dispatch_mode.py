"""Tracks every storage that CPU tensors allocate and free, through PyTorch's dispatcher.

A `TorchDispatchMode` sees what each op returns; a weak reference on the untyped storage tells when
it is freed, wherever that happens, including in C++ autograd on another thread. The result is a
list of events in time order that `account` sums after the step.

The mode is active in sampled steps only, and runs exactly the op it was given. Still, its presence
makes ATen take other paths through some composite operations, so it is used only for virtual
devices and for scripts that ask for it. Modes are per thread: each thread that works for a device
pushes it.
"""

from __future__ import annotations

import os
import sys
import weakref
from typing import Any

import torch
from torch.utils import _python_dispatch as dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from dpwatch.probe.foreign import is_foreign
from dpwatch.probe.memory.events import (
    OUT,
    BackwardMark,
    Entry,
    Event,
    Owner,
    Plan,
    Storage,
    StorageRef,
    ThreadDevice,
    only_shapes,
)
from dpwatch.probe.memory.mode_conflicts import ConflictHooks

_RESIZE = "resize_"

_DDP_FILE = os.path.join("nn", "parallel", "distributed.py")


_TRACKERS: weakref.WeakSet[StorageTracker] = weakref.WeakSet()


class StorageTracker:
    """Events of all threads in one list.

    `list.append` is atomic under the GIL, and allocations and frees are seen under the GIL, so the
    list is in time order across threads, and no lock is needed.
    """

    def __init__(self) -> None:
        self.active = False
        self.events: list[Event] = []
        self.lane = ThreadDevice()
        self.failure: str | None = None
        self._entries: dict[int, Entry] = {}  # by StorageImpl address, while it lives
        self._mode = _Mode(self)
        self._plans: dict[Any, Plan] = {}
        self._own_resize: Any = None
        self._watches = False
        self._conflicts = ConflictHooks(self._leave)
        _TRACKERS.add(self)

    # -- a sampled step ---------------------------------------------------------------------

    def begin(self) -> None:
        """Starts a new list of events with everything known to be alive."""
        self.events = events = []
        for entry in list(self._entries.values()):
            entry.carried = True
            events.append((entry, entry.nbytes))
        self._watch_resize()
        self._conflicts.open()
        self.active = True

    def end(self) -> list[Event]:
        """Stops tracking (living entries stay known) and returns the events."""
        self.active = False
        self._unwatch_resize()
        self._conflicts.close()
        events, self.events = self.events, []
        return events

    def may_push(self) -> bool:
        """Whether the mode may go on this thread's stack: not above or below somebody else's."""
        if self.lane.pushed:  # left over from a step boundary inside a user's own mode
            return self._on_top()
        stack = dispatch._get_current_dispatch_mode_stack()
        return all(getattr(mode, "stays_beneath", False) for mode in stack)

    def push(self) -> bool:
        """Puts the mode on this thread's stack, if allowed."""
        if self.lane.pushed or not self.may_push():
            return self.lane.pushed and self._on_top()
        # Not `__enter__`: it also sets process-wide flags, which is not safe with threads.
        dispatch._push_mode(self._mode)
        self.lane.pushed = True
        self.lane.graph_task = -1
        return True

    def pop(self) -> None:
        """Takes the mode off this thread's stack if it is on top; otherwise it stays, inactive."""
        if self.lane.pushed and self._on_top():
            dispatch._pop_mode()
            self.lane.pushed = False

    def finish_backward(self) -> None:
        """Marks the end of a backward that was the last thing this thread did."""
        if self.lane.graph_task != -1:
            self.lane.graph_task = -1
            self.events.append((BackwardMark(self.lane.device, begins=False), 0))

    def _on_top(self) -> bool:
        stack = dispatch._get_current_dispatch_mode_stack()
        return bool(stack) and stack[-1] is self._mode

    def enter_job(self, device: int) -> None:
        """This thread works for `device`; jobs nest."""
        lane = self.lane
        pushes = self.active and not lane.pushed and self.push()
        lane.outer.append((lane.device, pushes))
        lane.device = device

    def exit_job(self) -> None:
        """The innermost job has ended."""
        lane = self.lane
        if self.active:
            self.finish_backward()
        device, pushed = lane.outer.pop()
        lane.device = device
        if pushed:
            self.pop()

    def fail(self, error: Exception) -> None:
        """Stops tracking after an error: later events could not be trusted."""
        self.disable(f"{type(error).__name__}: {error}")

    def disable(self, why: str) -> None:
        """Stops tracking; the mode leaves the stack at the next opportunity."""
        self.failure = self.failure or why
        self.active = False

    def _leave(self, why: str) -> None:
        self._conflicts.close()  # dynamo compares these functions by identity
        self.disable(why)
        self.leave_if_failed()

    def leave_if_failed(self) -> None:
        """Removes the mode if it has been disabled; between operations, on any tracked thread."""
        if self.failure and self.lane.pushed:
            self.pop()

    # -- storages ---------------------------------------------------------------------------

    def adopt(
        self, tensor: torch.Tensor | None, category: str, known: set[int], *, device: int = 0
    ) -> None:
        """Counts a tensor found by walking.

        Args:
            tensor: A plain tensor, None for one that cannot be counted.
            category: Its category.
            known: Storages this walk has seen already, extended here: the first category wins.
            device: Its device, if its allocation was not seen.
        """
        if tensor is None or not tensor.is_cpu:
            return
        if tensor.is_complex():
            self.disable("complex tensors are in use")
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in known:
            return
        known.add(key)
        if category == "params" and tensor.numel() and not storage.nbytes():
            category = "gathered"  # its memory is freed until it is gathered again
        entry = self._entries.get(key)
        if entry is None:
            entry = self._follow(storage, device, in_backward=False)
        entry.category = category

    def device_of(self, tensor: torch.Tensor | None) -> int:
        """The device that a tensor is known to be on, 0 if unknown."""
        entry = None if tensor is None else self._entries.get(tensor.untyped_storage()._cdata)
        return 0 if entry is None else entry.device

    def forget(self) -> None:
        """Drops every weak reference."""
        self._entries.clear()

    def alive(self) -> list[Entry]:
        """Entries of all storages known to be alive."""
        return list(self._entries.values())

    def see(self, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Records what one op allocated and read."""
        lane = self.lane
        task = torch._C._current_graph_task_id()
        if task != lane.graph_task:
            self._cross_backward(lane, task)
        if plan.allocates:
            self._see_new(out, lane.device, task != -1)
            if plan.empty and _called_by_ddp():
                self._entries[out.untyped_storage()._cdata].bucket = True
        if plan.resizes:
            self._see_resized(args[0])
        if plan.tags is not None:
            position, category = plan.tags
            self._tag(kwargs["out"] if position == OUT else args[position], category)
        if lane.device and task == -1:
            # A replica has no modules to walk: its parameters are the leaves its forward reads.
            self._see_leaves(args)

    def plan_of(self, func: Any) -> Plan:
        """What to check after an op, derived once from its schema."""
        plan = self._plans.get(func)
        if plan is None:
            plan = self._plans[func] = Plan(func)
        return plan

    def _cross_backward(self, lane: ThreadDevice, task: int) -> None:
        if lane.graph_task != -1:
            self.events.append((BackwardMark(lane.device, begins=False), 0))
        if task != -1:
            self.events.append((BackwardMark(lane.device, begins=True), 0))
        lane.graph_task = task

    def _see_new(self, out: Any, device: int, in_backward: bool) -> None:
        if isinstance(out, torch.Tensor):
            if out.is_complex():
                self.disable("complex tensors are in use")
            if out.is_cpu:
                storage = out.untyped_storage()
                if storage._cdata not in self._entries:
                    self._follow(storage, device, in_backward=in_backward)
        elif isinstance(out, tuple | list):
            for item in out:
                self._see_new(item, device, in_backward)

    def _see_leaves(self, args: Any) -> None:
        for value in args:
            if isinstance(value, torch.Tensor):
                if value.requires_grad and value.is_leaf:
                    self._tag(value, "params")
            elif isinstance(value, tuple | list):
                self._see_leaves(value)

    def _see_resized(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        entry = self._entries.get(storage._cdata)
        if entry is None:
            self._follow(storage, self.lane.device, in_backward=self.lane.graph_task != -1)
        else:
            self._resized(entry, storage.nbytes())

    def _tag(self, tensors: Any, category: str) -> None:
        for tensor in tensors if isinstance(tensors, tuple | list) else (tensors,):
            entry = self._entries.get(tensor.untyped_storage()._cdata)
            if entry is not None and entry.category is None:
                entry.category = category

    def _follow(self, storage: Storage, device: int, *, in_backward: bool) -> Entry:
        """Tracks a storage from here on; in a sampled step, as allocated now."""
        entry = self._know(storage, Entry(device, storage.nbytes(), in_backward=in_backward))
        if self.active:
            self.events.append((entry, entry.nbytes))
        return entry

    def _know(self, storage: Storage, entry: Entry) -> Entry:
        ref = StorageRef(storage, self._freed)
        ref.entry, ref.key = entry, storage._cdata
        entry.ref = ref
        self._entries[ref.key] = entry
        return entry

    def _freed(self, ref: weakref.ref[Storage]) -> None:
        # Runs in the storage's destructor, on any thread: no locks, nothing that can raise.
        assert isinstance(ref, StorageRef)
        entry = ref.entry
        self._entries.pop(ref.key, None)
        entry.ref = None
        if self.active:
            self.events.append((entry, -entry.nbytes))

    def _resized(self, entry: Entry, nbytes: int) -> None:
        if nbytes != entry.nbytes:
            self.events.append((entry, nbytes - entry.nbytes))
            entry.nbytes = nbytes

    def _see_storage_resized(self, storage: Storage, before: int) -> None:
        """FSDP's unsharded parameters come and go this way, in storages allocated long before."""
        entry = self._entries.get(storage._cdata)
        if entry is None:
            entry = self._know(storage, Entry(self.lane.device, before, in_backward=False))
            entry.carried = True
            self.events.insert(0, (entry, before))  # it existed when the step began
        if entry.category is None:
            entry.category = "gathered"
        self._resized(entry, storage.nbytes())

    # -- FSDP frees storages by resizing them to 0 ----------------------------------------------

    def _watch_resize(self) -> None:
        original = Storage.resize_
        tracker = self

        def resize_(storage: Storage, size: int) -> Any:
            before = storage.nbytes()
            result = original(storage, size)
            if tracker.active and storage.device.type == "cpu":
                try:
                    tracker._see_storage_resized(storage, before)
                except Exception as error:
                    if is_foreign(error):
                        raise
                    tracker.fail(error)
            return result

        self._own_resize = vars(Storage).get("resize_")  # None: inherited
        setattr(Storage, _RESIZE, resize_)
        self._watches = True

    def _unwatch_resize(self) -> None:
        if not self._watches:
            return
        self._watches = False
        if self._own_resize is None:
            delattr(Storage, _RESIZE)
        else:
            setattr(Storage, _RESIZE, self._own_resize)

    def owner(self, device: int) -> Owner:
        """Context manager: what this thread allocates meanwhile belongs to `device`."""
        return Owner(self.lane, device)


def any_unwraps(types: Any) -> bool:
    """Whether one of the tensor classes has its own `__torch_dispatch__`."""
    disabled = torch._C._disabled_torch_dispatch_impl
    return any(getattr(kind, "__torch_dispatch__", disabled) is not disabled for kind in types)


def _is_distributed(kind: type) -> bool:
    plain = getattr(kind, "__torch_dispatch__", None) is torch._C._disabled_torch_dispatch_impl
    return plain or kind.__module__.startswith("torch.distributed.")


def _called_by_ddp() -> bool:
    """Whether the current op comes from DDP's own code, whose reducer allocates buckets."""
    # This function, see, __torch_dispatch__, then whoever called into C++.
    caller = sys._getframe(3).f_code
    return caller.co_filename.endswith(_DDP_FILE)


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs each op and reports its result to the tracker."""

    supports_higher_order_operators = True

    def __init__(self, tracker: StorageTracker) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tracker = tracker

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would wrap this class's dispatch in a dynamo guard, at microseconds per op.
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if only_shapes():
            return func(*args, **kwargs)
        tracker = self._tracker
        if types and any_unwraps(types):
            # A subclass (such as DTensor) unwraps itself first; its parts come back here.
            if not all(map(_is_distributed, types)):
                tracker.disable("tensor subclasses are in use")
            return NotImplemented
        out = func(*args, **kwargs)
        if tracker.active:
            try:
                tracker.see(tracker.plan_of(func), args, kwargs, out)
            except Exception as error:
                if is_foreign(error):
                    raise
                tracker.fail(error)
        return out


def _silence_child() -> None:
    """A forked DataLoader worker inherits the mode mid-step: it must not track anything."""
    for tracker in list(_TRACKERS):
        tracker.active = False
        tracker.pop()


os.register_at_fork(after_in_child=_silence_child)
