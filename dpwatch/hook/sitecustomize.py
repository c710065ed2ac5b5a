"""How `dpwatch run` gets into training processes: Python runs this file as it starts.

`dpwatch run` puts this folder first on PYTHONPATH, which launchers (torchrun, accelerate, mp.spawn)
hand on. Python then finds this `sitecustomize` before the user's own. It

1. takes every trace of its folder out of `sys.path` again;
2. waits for torch to be imported, and marks what is called first of all by whoever trains: by
   `init_process_group` (a rank) and by an optimizer's constructor. Launchers and DataLoader workers
   call neither, and stay as they are;
3. starts the probe at the first such call, and takes the marks away;
4. goes on with the `sitecustomize` that would have run without this one, or fails as Python does
   where there is none.

A process that does not import torch is not touched, and pays well under a millisecond: until 3,
neither dpwatch nor anything that Python itself has not loaded yet is imported.

The marks lie in places that no script holds, compares, pickles or looks at, so that public names
stay the objects they are, and no frame of this file stands in a traceback.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

_FOLDER = os.path.dirname(__file__)
_GROUPS, _OPTIMIZERS = "torch.distributed.distributed_c10d", "torch.optim.optimizer"


class _Lookout:
    """A finder that finds nothing: at each import it sees whether torch is there by now.

    To stand around the execution of torch's modules instead would put a frame under them, which
    warnings and tracebacks show.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        _MARKS.look()


class _Marks:
    """What is in place of torch's own meanwhile, and how to put that back."""

    def __init__(self) -> None:
        self._lookout: _Lookout | None = None
        self._wanted: dict[str, Callable[[ModuleType], bool]] = {}
        self._undo: list[Callable[[], None]] = []

    def set(self) -> None:
        """Waits for the first call from now on. In this process, and in those forked from it."""
        self.clear()
        self._wanted = {_GROUPS: self._mark_groups, _OPTIMIZERS: self._mark_optimizers}
        self._lookout = _Lookout()
        sys.meta_path.insert(0, self._lookout)
        self.look()

    def look(self) -> None:
        """Marks what has been imported, as soon as what is to be marked is defined."""
        for name in [name for name in self._wanted if name in sys.modules]:
            try:
                marked = self._wanted[name](sys.modules[name])
            except Exception:
                marked = True
            if marked:
                self._wanted.pop(name, None)
        torch = sys.modules.get("torch")
        if self._wanted and getattr(torch, "__version__", None) and not _is_coming(torch):
            self._wanted.clear()  # a torch without torch.distributed
        if not self._wanted:
            self._stop_looking()

    def clear(self) -> bool:
        """Puts everything back. Returns: whether anything was marked."""
        self._wanted.clear()
        self._stop_looking()
        undo, self._undo = self._undo, []
        for each in undo:
            each()
        return bool(undo)

    def _stop_looking(self) -> None:
        lookout, self._lookout = self._lookout, None
        if lookout in sys.meta_path:
            sys.meta_path.remove(lookout)

    def _mark_groups(self, module: Any) -> bool:
        names = ["rendezvous", "_update_default_pg"]
        if not hasattr(module, "destroy_process_group"):
            return False  # not all of it has been executed
        if not all(hasattr(module, name) for name in names):  # private: another torch
            names = ["init_process_group"]
        for name in names:
            self._replace(module, name, _calling(getattr(module, name)))
        return True

    def _mark_optimizers(self, module: Any) -> bool:
        optimizer = getattr(module, "Optimizer", None)
        if optimizer is None:
            return False
        known = "_patch_step_function" in vars(optimizer)  # private
        name = "_patch_step_function" if known else "__init__"
        self._replace(optimizer, name, _Notice(vars(optimizer)[name]))
        return True

    def _replace(self, owner: Any, name: str, ours: Any) -> None:
        original = vars(owner)[name]

        def undo() -> None:
            if vars(owner).get(name) is ours:
                setattr(owner, name, original)

        setattr(owner, name, ours)
        self._undo.append(undo)


class _Notice:
    """A method that is looked up for the first time: nothing of ours is there when it runs."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is not None:
            _start()
        return self._method.__get__(instance, owner)


def _calling(function: Callable[..., Any]) -> Callable[..., Any]:
    def notice(*args: Any, **kwargs: Any) -> Any:
        _start()
        return function(*args, **kwargs)

    notice.__dict__.update(vars(function), __wrapped__=function)
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(notice, name, getattr(function, name, None))
    return notice


def _is_coming(module: Any) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


_MARKS = _Marks()


def _start() -> None:
    """Starts the probe, once the marks are set; whatever is wrong with it, the script goes on."""
    if not _MARKS.clear() or "DPWATCH_SESSION" not in os.environ:
        return
    try:
        from dpwatch.probe import watch_implicitly
    except Exception as error:  # such as no dpwatch in this Python
        if _is_foreign(error):
            raise
        if sys.stderr is not None:
            sys.stderr.write(
                f"dpwatch: not watching this process of {sys.executable} ({error}); "
                "dpwatch must be installed beside torch\n"
            )
        return
    watch_implicitly(_MARKS.set)


def _is_foreign(error: Exception) -> bool:
    """See `dpwatch.probe.foreign`, whose package may be what can't be imported."""
    from runpy import run_path

    path = os.path.join(os.path.dirname(_FOLDER), "probe", "foreign.py")
    return os.path.exists(path) and bool(run_path(path)["is_foreign"](error))


sys.path[:] = [entry for entry in sys.path if os.path.normpath(entry or ".") != _FOLDER]
sys.path_importer_cache.pop(_FOLDER, None)
if os.environ.get("DPWATCH") != "0" and "DPWATCH_SESSION" in os.environ:
    _MARKS.set()
sys.modules.pop("sitecustomize", None)
# Another one, or Python's own error that there is none.
import sitecustomize  # noqa: E402, F401
