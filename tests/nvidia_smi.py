"""A pretended nvidia-smi: a script that prints what a test says, in the real one's form."""

from pathlib import Path

A100 = """\
0, GPU-96ab329d-7a1f-73a8-a9b7-18b4b2855f92, 93, 61, 287.45, 70213, 81920, NVIDIA A100-SXM4-80GB
1, GPU-2f1c7f0e-55a0-9d0b-1e4e-6f1f0c0c7f11, 0, 34, 62.10, 4, 81920, NVIDIA A100-SXM4-80GB
"""
A100_USERS = """\
GPU-96ab329d-7a1f-73a8-a9b7-18b4b2855f92, 41873, 70198, /opt/conda/bin/python
"""
NO_DRIVER = """\
NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. \
Make sure that the latest NVIDIA driver is installed and running.

"""

_SCRIPT = """\
#!/bin/sh
echo "$LC_ALL $*" >>{folder}/asked
case "$*" in
  "--query-gpu=index,uuid,"*" --format=csv,noheader,nounits") cat {folder}/gpus;;
  "--query-compute-apps=gpu_uuid,pid,"*" --format=csv,noheader,nounits") cat {folder}/users;;
  *) echo "ERROR: Option $1 is not recognized. Please run 'nvidia-smi -h'."; exit 2;;
esac
exit "$(cat {folder}/code)"
"""


class NvidiaSmi:
    """Lies in the folder `bin` as long as it is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True, exist_ok=True)
        self._program = self.bin / "nvidia-smi"

    def says(self, gpus: str, users: str = "", code: int = 0) -> None:
        """From now on."""
        for name, text in (("gpus", gpus), ("users", users), ("code", f"{code}\n")):
            (self.folder / name).write_text(text)
        self._program.write_text(_SCRIPT.format(folder=self.folder))
        self._program.chmod(0o755)

    def remove(self) -> None:
        """There is none from now on."""
        self._program.unlink(missing_ok=True)
        (self.folder / "asked").unlink(missing_ok=True)

    @property
    def asked(self) -> list[str]:
        """The locale and the words of each call."""
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []
