"""A real terminal: tmux, keys, and what stands on the screen."""

import shutil
import subprocess
import sys

from tests.processes import environment, eventually

MISSING = "" if shutil.which("tmux") else "needs tmux: apt-get install tmux"


class Terminal:
    """A detached tmux session that runs one command, then says its exit code and stays."""

    def __init__(self, folder, width, height, *command):
        self._closed = False
        self._socket = str(folder / "tmux")
        words = " ".join([sys.executable, "-m", "dpwatch", *command])
        self._tmux(
            *("-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height)),
            f"stty -echo; {words}; echo EXIT=$?; stty sane; stty -a | grep -o ' echo '; cat",
        )

    def _tmux(self, *arguments):
        done = subprocess.run(
            ["tmux", "-S", self._socket, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=environment(TERM="xterm-256color", COLORTERM="truecolor"),
        )
        return done.stdout

    def keys(self, *names):
        self._tmux("send-keys", *names)

    def screen(self):
        return self._tmux("capture-pane", "-p")

    def resize(self, width, height):
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def until(self, *texts):
        """Waits until all of these stand on the screen, and returns it."""
        seen = [""]

        def there():
            seen[0] = self.screen()
            return all(text in seen[0] for text in texts)

        try:
            eventually(there, texts)
        except AssertionError:
            raise AssertionError(f"never saw {texts} in\n{seen[0]}") from None
        return seen[0]

    def pid(self, name):
        """The pid of the dpwatch command in it."""
        shell = self._tmux("display", "-p", "#{pane_pid}").strip()
        found = subprocess.run(
            ["pgrep", "-P", shell, "-f", name], capture_output=True, text=True, check=False
        )
        return int(found.stdout.split()[0])

    def close(self):
        """Closes the window and all that is in it; once more does nothing."""
        if not self._closed:
            self._closed = True
            self._tmux("kill-server")
