"""How `dpwatch run` gets into training processes: Python runs this file at startup.

`dpwatch run` puts this directory first on PYTHONPATH, which launchers (torchrun, accelerate,
mp.spawn) pass on. Python then finds this `sitecustomize` before the user's own. It

1. removes its directory from `sys.path` again;
2. waits for torch to be imported, and hooks what every training process calls first:
   `init_process_group` (a rank) and an optimizer's constructor. Launchers and DataLoader workers
   call neither, and are not affected;
3. starts the probe at the first such call, and removes the hooks;
4. continues with the `sitecustomize` that would have run without this one, or fails as Python does
   if there is none.

A process that does not import torch is not touched, and pays well under a millisecond: until step
3, neither dpwatch nor anything that Python itself has not loaded yet is imported.

The hooks are in places that no script holds, compares, pickles or inspects, so that public names
stay the objects they are, and no frame of this file appears in a traceback.
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


class _ImportWatcher:
    """A finder that finds nothing: at each import it checks whether torch has been imported.

    Wrapping the execution of torch's modules instead would add a frame below them, which warnings
    and tracebacks show.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        _HOOKS.install()


class _TorchHooks:
    """The hooks on torch, and how to remove them."""

    def __init__(self) -> None:
        self._watcher: _ImportWatcher | None = None
        self._wanted: dict[str, Callable[[ModuleType], bool]] = {}
        self._undo: list[Callable[[], None]] = []

    def arm(self) -> None:
        """Waits for the first call from now on, in this process and in those forked from it."""
        self.disarm()
        self._wanted = {_GROUPS: self._hook_groups, _OPTIMIZERS: self._hook_optimizers}
        self._watcher = _ImportWatcher()
        sys.meta_path.insert(0, self._watcher)
        self.install()

    def install(self) -> None:
        """Installs each hook as soon as what it hooks has been imported and defined."""
        for name in [name for name in self._wanted if name in sys.modules]:
            try:
                installed = self._wanted[name](sys.modules[name])
            except Exception:
                installed = True
            if installed:
                self._wanted.pop(name, None)
        torch = sys.modules.get("torch")
        if self._wanted and getattr(torch, "__version__", None) and not _is_initializing(torch):
            self._wanted.clear()  # a torch without torch.distributed
        if not self._wanted:
            self._stop_watching()

    def disarm(self) -> bool:
        """Removes everything. Returns: whether any hook was installed."""
        self._wanted.clear()
        self._stop_watching()
        undo, self._undo = self._undo, []
        for each in undo:
            each()
        return bool(undo)

    def _stop_watching(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher in sys.meta_path:
            sys.meta_path.remove(watcher)

    def _hook_groups(self, module: Any) -> bool:
        names = ["rendezvous", "_update_default_pg"]
        if not hasattr(module, "destroy_process_group"):
            return False  # the module is still being executed
        if not all(hasattr(module, name) for name in names):  # private names: another torch
            names = ["init_process_group"]
        for name in names:
            self._replace(module, name, _start_on_call(getattr(module, name)))
        return True

    def _hook_optimizers(self, module: Any) -> bool:
        optimizer = getattr(module, "Optimizer", None)
        if optimizer is None:
            return False
        known = "_patch_step_function" in vars(optimizer)  # private
        name = "_patch_step_function" if known else "__init__"
        self._replace(optimizer, name, _StartOnLookup(vars(optimizer)[name]))
        return True

    def _replace(self, owner: Any, name: str, ours: Any) -> None:
        original = vars(owner)[name]

        def undo() -> None:
            if vars(owner).get(name) is ours:
                setattr(owner, name, original)

        setattr(owner, name, ours)
        self._undo.append(undo)


class _StartOnLookup:
    """A method that is looked up for the first time; when it runs, no frame of ours is left."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is not None:
            _start()
        return self._method.__get__(instance, owner)


def _start_on_call(function: Callable[..., Any]) -> Callable[..., Any]:
    def notice(*args: Any, **kwargs: Any) -> Any:
        _start()
        return function(*args, **kwargs)

    notice.__dict__.update(vars(function), __wrapped__=function)
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(notice, name, getattr(function, name, None))
    return notice


def _is_initializing(module: Any) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


_HOOKS = _TorchHooks()


def _start() -> None:
    """Starts the probe once the hooks are removed; the script goes on whatever goes wrong in it."""
    if not _HOOKS.disarm() or "DPWATCH_SESSION" not in os.environ:
        return
    try:
        from dpwatch.probe import watch_implicitly
    except Exception as error:  # for instance, dpwatch is not installed in this Python
        if _is_foreign(error):
            raise
        if sys.stderr is not None:
            sys.stderr.write(
                f"dpwatch: not watching this process of {sys.executable} ({error}); "
                "install dpwatch where torch is installed\n"
            )
        return
    watch_implicitly(_HOOKS.arm)


def _is_foreign(error: Exception) -> bool:
    """See `dpwatch.probe.foreign`, whose package may be what cannot be imported."""
    from runpy import run_path

    path = os.path.join(os.path.dirname(_FOLDER), "probe", "foreign.py")
    return os.path.exists(path) and bool(run_path(path)["is_foreign"](error))


sys.path[:] = [entry for entry in sys.path if os.path.normpath(entry or ".") != _FOLDER]
sys.path_importer_cache.pop(_FOLDER, None)
if os.environ.get("DPWATCH") != "0" and "DPWATCH_SESSION" in os.environ:
    _HOOKS.arm()
sys.modules.pop("sitecustomize", None)
# The user's own, or Python's error that there is none.
import sitecustomize  # noqa: E402, F401
