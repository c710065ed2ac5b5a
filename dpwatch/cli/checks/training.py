"""Whether training can be watched here: torch, its collectives, and the start-up hook."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpwatch.cli.checks.check import NOTE, OK, TROUBLE, Check
from dpwatch.cli.checks.child import ask
from dpwatch.cli.checks.installed import requirements, version_of, within

TORCH_S = 90.0
"""How long importing torch and a collective may take; half of it is for a cold disk."""

HOOK_S = 30.0
IGNORES = "not a Python started with -I, -E or -S"

_HOOK = """\
import json, sys
module = sys.modules.get("sitecustomize")
print(json.dumps({
    "hooked": any(type(f).__module__ == "sitecustomize" for f in sys.meta_path),
    "file": getattr(module, "__file__", None),
}))
"""


def checks(gpus: int | None) -> Iterator[Check]:
    """torch, collectives and the hook.

    Args:
        gpus: How many GPUs NVML reports, None if it doesn't answer.
    """
    if find_spec("torch") is None:
        yield Check(
            "torch",
            NOTE,
            "not installed: watching works, training here does not",
            "pip install torch numpy",
        )
        yield Check("collectives", NOTE, "not tried without torch")
    else:
        told, why = ask(
            [sys.executable, "-m", "dpwatch.probe.selfcheck"],
            timeout_s=TORCH_S,
            env=_quiet_environment(),
        )
        yield torch(told, why, gpus)
        yield collectives(told, why)
        if "durations" in told:
            yield durations(told)
    yield hook()


def torch(told: dict[str, Any], why: str, gpus: int | None) -> Check:
    """The version of torch, and whether it can use the GPUs."""
    if "torch" not in told:
        known = version_of("torch")
        text = f"{known or 'version unknown'}: cannot be used: {why}"
        return Check("torch", TROUBLE, text, "reinstall torch", known)
    version = str(told["torch"])
    asked = requirements("train").get("torch", "")
    if not within(version, asked):
        text = f"{version}: dpwatch needs torch{asked}"
        return Check("torch", TROUBLE, text, f"pip install 'torch{asked}'", version)
    built = _build(told)
    seen = told.get("gpus") or 0
    text = f"{version}, {built}, {seen} GPUs usable" if seen else f"{version}, {built}"
    if built == _CPU_BUILD and gpus:
        advice = "to train on the GPUs, install a CUDA build of torch (pytorch.org)"
        return Check("torch", NOTE, f"{text}, and this host has {gpus} GPUs", advice, version)
    if built != _CPU_BUILD and gpus and not seen:
        advice = "check CUDA_VISIBLE_DEVICES and the driver's version"
        text = f"{text}: it cannot use any of this host's {gpus} GPUs"
        return Check("torch", NOTE, text, advice, version)
    return Check("torch", OK, text, value=version)


def collectives(told: dict[str, Any], why: str) -> Check:
    """How collectives are observed, tried in a child process."""
    if "torch" not in told:
        return Check("collectives", NOTE, "not tried: torch cannot be used")
    if not told.get("gloo"):
        return Check("collectives", NOTE, "not tried: this torch has no gloo")
    capture = told.get("capture")
    if capture is None:
        text = f"a process group of one rank (gloo) does not work: {why}"
        return Check("collectives", TROUBLE, text, "try torch.distributed without dpwatch")
    if capture == "observer" and told["python"] and told["native"]:
        text = "observer: all are seen, from Python and from C++ (tried with gloo)"
        return Check("collectives", OK, text, value=capture)
    lacks = "those of C++ callers such as DDP" if told["python"] else "they"
    text = f"{capture}: {lacks} are not seen with this torch"
    mark = NOTE if told["python"] else TROUBLE
    return Check("collectives", mark, text, "docs/limits.md names the versions tested", capture)


def durations(told: dict[str, Any]) -> Check:
    """Whether NCCL durations can be read with the current environment."""
    name = "NCCL times"
    why, advice = told["durations"]
    if why:
        text = f"durations of NCCL collectives are not measured: {why}"
        return Check(name, NOTE, text, advice, False)
    text = "durations of NCCL collectives are read from the flight recorder, as configured here"
    return Check(name, OK, text, value=True)


def hook() -> Check:
    """Whether `dpwatch run` hooks into a Python that it starts."""
    from dpwatch.cli.run import environment

    env = environment("doctor")
    folder = Path(env["PYTHONPATH"].split(os.pathsep)[0])
    if env.get("DPWATCH") == "0":
        return Check("start-up hook", NOTE, "DPWATCH=0 is set: nothing is watched", "unset it")
    told, why = ask([sys.executable, "-c", _HOOK], timeout_s=HOOK_S, env=env)
    if not told.get("hooked"):
        text = f"dpwatch run cannot hook into {sys.executable}: {why or 'sitecustomize not run'}"
        advice = "call dpwatch.watch() in the script instead"
        return Check("start-up hook", TROUBLE, text, advice, False)
    own = told.get("file")
    kept = ""
    if own is not None and Path(own).parent != folder:
        kept = f", and your own {own} runs after it"
    return Check("start-up hook", OK, f"dpwatch run hooks in{kept} ({IGNORES})", value=True)


_CPU_BUILD = "a CPU build"


def _build(told: dict[str, Any]) -> str:
    if told.get("cuda"):
        return f"built with CUDA {told['cuda']}"
    return f"built with ROCm {told['hip']}" if told.get("hip") else _CPU_BUILD


def _quiet_environment() -> dict[str, str]:
    """The child's environment: no probe, no rank, one thread, and loopback only for gloo."""
    from dpwatch.runtime.spawn import hub_environment

    env = hub_environment()
    env.pop("DPWATCH_SESSION", None)
    return env | {"DPWATCH": "0", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": _loopback()}


def _loopback() -> str:
    return "lo0" if sys.platform == "darwin" else "lo"
