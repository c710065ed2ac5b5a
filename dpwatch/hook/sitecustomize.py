"""How `dpwatch run` gets into training processes: Python runs this file as it starts.

`dpwatch run` puts this folder first on PYTHONPATH, which launchers (torchrun, accelerate, mp.spawn)
hand on. Python then finds this `sitecustomize` before the user's own. It

1. takes its folder off `sys.path` again and goes on with the user's own `sitecustomize`, if any;
2. waits for two of torch's modules to be imported, and marks a function in each;
3. starts the probe when either is called: `init_process_group` (a rank) or an optimizer's
   constructor (whoever trains). Launchers and DataLoader workers call neither, and stay as they
   are.

A process that does not import torch is not touched, and pays well under a millisecond: until 3,
neither dpwatch nor anything that Python itself has not loaded yet is imported.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_FOLDER = os.path.dirname(os.path.abspath(__file__))


class _Marker:
    """A finder that finds nothing itself: it adds one call to how a module is executed."""

    def __init__(self) -> None:
        self.marks: dict[str, Callable[[Any], None]] = {
            "torch.distributed.distributed_c10d": _mark_groups,
            "torch.optim.optimizer": _mark_optimizers,
        }

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        mark = self.marks.get(name)
        if mark is None:
            return None
        for finder in sys.meta_path:
            if finder is not self:
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    self._add(spec.loader, name, mark)
                    return spec
        return None

    def _add(self, loader: Any, name: str, mark: Callable[[Any], None]) -> None:
        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # from here on, the loader is as it was
            loader.exec_module(module)
            self.marks.pop(name, None)
            if not self.marks and self in sys.meta_path:
                sys.meta_path.remove(self)
            try:
                mark(module)
            except Exception:
                pass

        try:
            loader.exec_module = exec_module
        except AttributeError:
            pass


def _mark_groups(module: Any) -> None:
    import functools

    original = module.init_process_group

    @functools.wraps(original)
    def init_process_group(*args: Any, **kwargs: Any) -> Any:
        _start()  # before: whoever stands in it for ever has not come out of it
        return original(*args, **kwargs)

    module.init_process_group = init_process_group


def _mark_optimizers(module: Any) -> None:
    import functools

    optimizer = module.Optimizer
    original = optimizer.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if optimizer.__init__ is __init__:  # once: later ones are as they always were
            optimizer.__init__ = original
        _start()
        original(self, *args, **kwargs)

    optimizer.__init__ = __init__


_started_in = 0


def _start() -> None:
    """Starts the probe, once in a process; whatever is wrong with it, the script goes on."""
    global _started_in
    if _started_in == os.getpid() or "DPWATCH_SESSION" not in os.environ:
        return
    _started_in = os.getpid()
    try:
        from dpwatch.probe import watch_unasked

        watch_unasked()
    except Exception as error:  # such as no dpwatch in this Python
        try:
            sys.stderr.write(
                f"dpwatch: not watching this process of {sys.executable} ({error}); "
                "dpwatch must be installed beside torch\n"
            )
        except Exception:
            pass


def _go_on() -> None:
    """Runs the `sitecustomize` that would have run without this one."""
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec

        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _FOLDER]
if os.environ.get("DPWATCH") != "0" and "DPWATCH_SESSION" in os.environ:
    sys.meta_path.insert(0, _Marker())
_go_on()
