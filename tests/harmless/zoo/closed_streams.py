"""A Python that is started with stdin, stdout or stderr closed, as daemons are.

variants: stdin | stdout | stderr | all
"""

import subprocess
import sys
from pathlib import Path

CODE = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import torch
from training import fingerprint, small_model, train
model = small_model()
class Nowhere:
    def write(self, text): pass
    def flush(self): pass
streams = [sys.stdin is None, sys.stdout is None, sys.stderr is None]
train(model, torch.optim.SGD(model.parameters(), lr=0.1))
open("told.txt", "w").write(f"{{streams}} {{fingerprint(model.parameters())}}\\n")
"""
closed = {"stdin": "0<&-", "stdout": "1>&-", "stderr": "2>&-", "all": "0<&- 1>&- 2>&-"}[sys.argv[1]]
done = subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, CODE])
print("left with", done.returncode, Path("told.txt").read_text())
