"""A C program that runs Python: initialise, train, finalise, initialise once more.

needs: program gcc, program python3-config
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCE = r"""
#include <Python.h>
int main(int argc, char **argv) {
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    PyConfig_SetBytesString(&config, &config.executable, argv[1]);
    Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    int failed = PyRun_SimpleString(argv[2]);
    printf("ran: %d\n", failed);
    fflush(stdout);
    int left = Py_FinalizeEx();
    printf("finalised: %d\n", left);
    return failed ? 1 : 0;
}
"""
CODE = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import torch
from training import show, small_model, train
model = small_model()
train(model, torch.optim.SGD(model.parameters(), lr=0.1))
show(sys.argv, __name__)
"""
Path("host.c").write_text(SOURCE)
paths = sysconfig.get_paths()
flags = [
    f"-I{paths['include']}",
    f"-L{sysconfig.get_config_var('LIBDIR')}",
    f"-lpython{sysconfig.get_config_var('LDVERSION')}",
]
built = subprocess.run(
    ["gcc", "host.c", "-o", "host", *flags, "-Wl,-rpath," + sysconfig.get_config_var("LIBDIR")],
    capture_output=True,
    text=True,
)
if built.returncode:
    print("not run: no Python library to link with", file=sys.stderr)
    sys.exit(77)
done = subprocess.run(["./host", sys.executable, CODE])
os.remove("host")
print("left with", done.returncode)
