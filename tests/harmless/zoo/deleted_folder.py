"""A working directory deleted before Python starts, and one deleted in mid-training."""

import os
import subprocess
import sys
from pathlib import Path

CODE = f"""
import os, sys
sys.path.append({str(Path(__file__).parent)!r})
import torch
from training import show, small_model, train
model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1))
try:
    os.getcwd()
except FileNotFoundError as error:
    show(type(error).__name__, hasattr(sys, "users_own"))
"""
for name in ("TORCH_COMPILE_DEBUG_DIR", "TORCHINDUCTOR_CUTLASS_DIR"):
    os.environ[name] = "/nowhere"  # else torch itself asks for the folder
own = Path("own").absolute()
own.mkdir()
(own / "sitecustomize.py").write_text("import sys\nsys.users_own = True\n")
path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(own))))
gone = Path("gone").absolute()
gone.mkdir()
os.chdir(gone)
gone.rmdir()
done = subprocess.run([sys.executable, "-c", CODE], env={**os.environ, "PYTHONPATH": path})
print("left with", done.returncode)
os.chdir(own)
(own / "later").mkdir()
os.chdir("later")
os.rmdir(own / "later")
exec(CODE)
