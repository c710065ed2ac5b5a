"""Ways to start Python: -m, -c, standard input, a zip archive, runpy, -O, -I, -P, -X dev.

exit: 1
variants: module | code | stdin | zipapp | runpy | optimised | isolated | safe-path | developer
"""

import runpy
import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

CODE = """
import sys
sys.path.append({place!r})
import torch
from training import show, small_model, train
def main():
    model = small_model()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    show(__name__, sys.argv, sys.path[:2], getattr(sys.modules["__main__"], "__file__", None))
    show(sys.flags, __debug__, sys.orig_argv[1:])
    raise RuntimeError("uncaught")
main()
""".format(place=str(Path(__file__).parent))

how = sys.argv[1]
Path("app").mkdir()
Path("app/__main__.py").write_text(CODE)
Path("script.py").write_text(CODE)
if how == "runpy":
    sys.argv = ["script.py", "an argument"]
    runpy.run_path("script.py", run_name="__main__")
if how == "zipapp":
    zipapp.create_archive("app", "app.pyz")
if how != "module":
    shutil.rmtree("app")
options = {
    "module": ["-m", "app"],
    "code": ["-c", CODE],
    "stdin": ["-"],
    "zipapp": ["app.pyz"],
    "optimised": ["-OO", "script.py"],
    "isolated": ["-I", "script.py"],
    "safe-path": ["-P", "script.py"],
    "developer": ["-s", "-u", "-X", "dev", "script.py"],
}
text = CODE if how == "stdin" else None
sys.exit(subprocess.run([sys.executable, *options[how], "one"], input=text, text=True).returncode)
