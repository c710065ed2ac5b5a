"""HOME and temporary folder can't be written to: nothing needs them or is left there."""

import os
import subprocess
import sys
from pathlib import Path

CODE = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import torch
from training import small_model, train
model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1))
"""
home = Path("home").absolute()
home.mkdir(mode=0o500)
env = {
    **os.environ,
    "HOME": str(home),
    "TMPDIR": "/proc/nowhere",
    "XDG_RUNTIME_DIR": "/proc/nowhere",
}
print(
    "left with",
    subprocess.run([sys.executable, "-c", CODE], env=env).returncode,
    list(home.iterdir()),
)
home.rmdir()
