"""The start-up hook: what a script could notice of it, before and after torch is imported."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dpwatch as dpwatch_package
from tests.processes import environment

PYTHON = sys.executable
HOOK = str(Path(dpwatch_package.__file__).parent / "hook")


def python(*arguments, hooked, own="", check=True, cwd=None, **more):
    """Runs Python as `dpwatch run` would start it, or without that; `own` is the PYTHONPATH."""
    path = os.pathsep.join([*([HOOK] if hooked else []), *([own] if own else [])])
    if path:
        more["PYTHONPATH"] = path
    if hooked:
        more["DPWATCH_SESSION"] = "abc"
    return subprocess.run(
        [PYTHON, *arguments],
        capture_output=True,
        text=True,
        check=check,
        cwd=cwd,
        env=environment(**more),
        timeout=120,
    )


LOOKS = """
import json, os, sys
facts = {
    "path": sys.path,
    "cache": sorted(sys.path_importer_cache),
    "modules": sorted(sys.modules),
    "own": getattr(sys, "users_own", None),
    "user": getattr(sys, "usercustomized", None),
    "pth": getattr(sys, "by_pth", None),
    "finders": [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path],
}
module = sys.modules.get("sitecustomize")
if module is not None:
    facts["spec"] = [module.__file__, module.__spec__.origin, type(module.__loader__).__name__]
print(json.dumps(facts))
"""


def looks(*arguments, **more):
    done = python(*(arguments or ("-c", LOOKS)), **more)
    assert done.stderr == ""
    return json.loads(done.stdout)


def alike(*arguments, finders=1, **more):
    """That a Python with the hook looks as one without, but for a finder that waits for torch."""
    hooked, plain = (looks(*arguments, hooked=hooked, **more) for hooked in (True, False))
    assert hooked["finders"][finders:] == plain["finders"]
    del hooked["finders"], plain["finders"]
    assert hooked == plain
    return hooked


def test_a_python_without_a_sitecustomize_has_none():
    assert "sitecustomize" not in alike()["modules"]


@pytest.fixture
def own(tmp_path):
    """A folder with the user's own `sitecustomize`."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.users_own = [__name__, __file__]\n")
    return folder


def test_the_user_s_own_is_run_as_without_us(own):
    facts = alike(own=str(own))
    assert facts["own"] == ["sitecustomize", str(own / "sitecustomize.py")]


@pytest.mark.parametrize(
    "code",
    ["1/0", "import no_such_module", "raise ImportError(name='x')", "1 +"],
)
def test_an_error_in_it_is_python_s_to_tell(own, code):
    (own / "sitecustomize.py").write_text(f"import sys\nsys.users_own = 1\n{code}\n")
    arguments = ("-c", "import sys; print('sitecustomize' in sys.modules, sys.argv)")
    hooked, plain = (
        python(*arguments, hooked=hooked, own=str(own), check=False) for hooked in (True, False)
    )
    assert (hooked.returncode, hooked.stdout) == (plain.returncode, plain.stdout)
    assert hooked.stderr == plain.stderr


def test_one_that_ends_python_does(own):
    (own / "sitecustomize.py").write_text("raise SystemExit(3)\n")
    hooked, plain = (
        python("-c", "print(1)", hooked=hooked, own=str(own), check=False)
        for hooked in (True, False)
    )
    assert (hooked.returncode, hooked.stdout) == (plain.returncode, plain.stdout)
    # Python tells of it with a traceback, in which our frame stands: the one thing that shows.
    ours = [line for line in hooked.stderr.splitlines() if line not in plain.stderr]
    assert len(ours) in (2, 3)
    assert HOOK in ours[0]


def test_a_directory_that_is_gone_changes_nothing(own, tmp_path):
    told = []
    for hooked in (True, False):
        gone = tmp_path / f"gone-{hooked}"
        gone.mkdir()
        script = f"cd {gone}; rmdir {gone}; exec {PYTHON} -c 'import sys; print(sys.users_own)'"
        env = environment(
            PYTHONPATH=f"{HOOK}:{own}" if hooked else str(own),
            **({"DPWATCH_SESSION": "abc"} if hooked else {}),
        )
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=env)
        told.append((done.returncode, done.stdout, done.stderr))
    assert told[0] == told[1]
    assert "sitecustomize.py" in told[0][1]


@pytest.mark.parametrize(
    "how", ["-P", "PYTHONSAFEPATH", "-m", "zipapp", "usercustomize", "pth", "twice", "-X utf8"]
)
def test_however_python_is_started(how, own, tmp_path):
    more, arguments = {}, ("-c", LOOKS)
    if how in ("-P", "PYTHONSAFEPATH") and sys.version_info < (3, 11):
        pytest.skip("comes with Python 3.11")
    if how == "-P":
        arguments = ("-P", "-c", LOOKS)
    elif how == "-X utf8":
        arguments = ("-X", "utf8", "-c", LOOKS)
    elif how == "PYTHONSAFEPATH":
        more["PYTHONSAFEPATH"] = "1"
    elif how == "-m":
        (own / "looks.py").write_text(LOOKS)
        arguments = ("-m", "looks")
    elif how == "zipapp":
        with zipfile.ZipFile(tmp_path / "app.pyz", "w") as archive:
            archive.writestr("__main__.py", LOOKS)
        arguments = (str(tmp_path / "app.pyz"),)
    elif how == "usercustomize":
        (own / "usercustomize.py").write_text("import sys\nsys.usercustomized = True\n")
    elif how == "pth":
        site = tmp_path / "site"
        site.mkdir()
        (site / "x.pth").write_text("import sys; sys.by_pth = True\n")
        (own / "sitecustomize.py").write_text(
            f"import site, sys\nsys.users_own = 1\nsite.addsitedir({str(site)!r})\n"
        )
    path = f"{HOOK}:{own}" if how == "twice" else str(own)
    if how == "twice":  # `dpwatch run -- dpwatch run -- …`
        hooked = looks(*arguments, hooked=True, own=path)
        assert hooked["own"] == ["sitecustomize", str(own / "sitecustomize.py")]
        assert HOOK not in hooked["path"]
    else:
        assert alike(*arguments, own=path, **more)["own"]


def test_dpwatch_0_leaves_no_finder_either():
    alike(finders=0, DPWATCH="0")


def test_a_python_that_has_no_use_for_it_pays_next_to_nothing():
    """It imports nothing more, which is what would cost time."""
    code = "import json, sys; print(json.dumps(sorted({*sys.modules} - {'sitecustomize'})))"
    hooked, plain = (json.loads(python("-c", code, hooked=each).stdout) for each in (True, False))
    assert hooked == plain


FACTS = """
import inspect, json, pickle, sys, warnings
told = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
told["warned"] = sorted({str(each.filename) for each in caught})
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.optim import Optimizer
told["finders"] = [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path]
told["path"] = sys.path
for module in (torch, c10d, sys.modules["torch.optim.optimizer"]):
    loader = module.__spec__.loader
    told[module.__name__] = [type(loader).__name__, sorted(vars(loader))]
for function in (dist.init_process_group, Optimizer.__init__, Optimizer.step):
    told[function.__qualname__] = [
        function.__module__, function.__name__, str(inspect.signature(function)),
        (function.__doc__ or "")[:40], inspect.getsourcefile(function),
        pickle.loads(pickle.dumps(function)) is function,
    ]
told["same"] = dist.init_process_group is c10d.init_process_group
told["hooks"] = [sys.excepthook is sys.__excepthook__, sys.unraisablehook is sys.__unraisablehook__]
try:
    dist.init_process_group(init_method=3)
except BaseException as error:
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    told["error"] = [type(error).__name__, str(error)]
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.1)
told["after"] = [
    type(vars(Optimizer)["_patch_step_function"]).__name__,
    c10d.rendezvous.__module__, c10d._update_default_pg.__module__,
    c10d.rendezvous.__code__.co_filename == sys.modules["torch.distributed.rendezvous"].__file__,
    [type(f).__name__ for f in sys.meta_path if "Lookout" in type(f).__name__],
]
print(json.dumps(told))
"""


def test_of_a_process_that_imports_torch_too_nothing_looks_different(tmp_path):
    script = tmp_path / "facts.py"
    script.write_text(FACTS)
    hooked = json.loads(python(str(script), hooked=True).stdout)
    assert hooked == json.loads(python(str(script), hooked=False).stdout)
    places = ["torch.distributed.rendezvous", "torch.distributed.distributed_c10d"]
    assert hooked["after"] == ["function", *places, True, []]


def fake_torch(folder):
    """Modules that look like torch's, so that nothing waits for the real one."""
    package = folder / "torch" / "optim"
    package.mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("from torch.optim import optimizer, adam\n")
    (package / "optimizer.py").write_text(
        "class Optimizer:\n    def __init__(self, x): self.x = x\n"
    )
    (package / "adam.py").write_text("")
    return str(folder)


def test_a_python_without_dpwatch_says_so_and_goes_on(tmp_path):
    script = (
        "import sys; sys.modules['dpwatch'] = None\n"
        "from torch.optim.optimizer import Optimizer as O; print(O(1).x, O(x=2).x)"
    )
    done = python("-s", "-c", script, hooked=True, own=fake_torch(tmp_path))
    assert done.stdout == "1 2\n"
    assert len(done.stderr.splitlines()) == 1
    assert "install dpwatch where torch is installed" in done.stderr


def test_a_time_limit_that_strikes_while_the_probe_is_imported_is_the_scripts(tmp_path):
    (tmp_path / "probe.py").write_text("import signal\nsignal.raise_signal(signal.SIGALRM)\n")
    script = (
        "import signal, sys, types\n"
        "ours = sys.modules['dpwatch'] = types.ModuleType('dpwatch')\n"
        f"ours.__path__ = [{str(tmp_path)!r}]\n"
        "class TimeIsUp(Exception): pass\n"
        "def late(number, frame): raise TimeIsUp\n"
        "signal.signal(signal.SIGALRM, late)\n"
        "from torch.optim.optimizer import Optimizer\n"
        "try: Optimizer(1)\n"
        "except TimeIsUp: print('in time')\n"
    )
    done = python("-c", script, hooked=True, own=fake_torch(tmp_path))
    assert (done.stdout, done.stderr) == ("in time\n", "")
