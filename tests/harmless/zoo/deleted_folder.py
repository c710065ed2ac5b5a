"""A working directory deleted before Python starts, and one deleted in mid-training."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from training import show, small_model, train

CODE = "import sys; print(hasattr(sys, 'users_own'), sys.meta_path[-3:], sys.path[:1])"
own = Path("own").absolute()
own.mkdir()
(own / "sitecustomize.py").write_text("import sys\nsys.users_own = True\n")
path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(own))))
gone = Path("gone").absolute()
gone.mkdir()
os.chdir(gone)
gone.rmdir()
done = subprocess.run([sys.executable, "-c", CODE], env={**os.environ, "PYTHONPATH": path})
show("left with", done.returncode)
os.chdir(own)
model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1), 14)
(own / "later").mkdir()
os.chdir("later")
os.rmdir(own / "later")
train(model, torch.optim.Adam(model.parameters(), lr=1e-2), 14)
try:
    os.getcwd()
except FileNotFoundError as error:
    show(type(error).__name__)
