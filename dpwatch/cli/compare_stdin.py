"""One standard input for several runs: each reads the same."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
from collections.abc import Iterator
from types import TracebackType

_READ = 1 << 16


class Stdin:
    """Standard input, which each of several runs reads from its beginning.

    A file is reopened at its position. What comes through a pipe is kept and replayed to the next
    run. A terminal, a device or a closed input is passed on as it is.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._ended = False
        self._kind = _kind()
        self._offset = os.lseek(0, 0, os.SEEK_CUR) if self._kind == "file" else 0

    def __enter__(self) -> Stdin:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kept.clear()

    @contextlib.contextmanager
    def opened(self) -> Iterator[int | None]:
        """A descriptor for one run, None for our own."""
        if self._kind == "file":
            with open("/proc/self/fd/0", "rb") as file:
                os.lseek(file.fileno(), self._offset, os.SEEK_SET)
                yield file.fileno()
        elif self._kind == "pipe":
            with self._replayed() as descriptor:
                yield descriptor
        else:
            yield None

    @contextlib.contextmanager
    def _replayed(self) -> Iterator[int]:
        reader, writer = os.pipe()
        stop_reader, stop_writer = os.pipe()
        feeder = threading.Thread(target=self._feed, args=(writer, stop_reader), daemon=True)
        try:
            feeder.start()
            yield reader
        finally:
            os.close(stop_writer)
            feeder.join()
            os.close(stop_reader)
            os.close(reader)

    def _feed(self, writer: int, stop: int) -> None:
        """Writes what was kept, then what arrives, until the run or the input ends."""
        os.set_blocking(writer, False)
        written = 0
        try:
            while True:
                if written < len(self._kept):
                    if stop in select.select([stop], [writer], [])[0]:
                        return
                    written += os.write(writer, self._kept[written : written + _READ])
                elif self._ended:
                    return
                else:
                    ready = select.select([stop, 0], [], [])[0]
                    if stop in ready:
                        return
                    read = os.read(0, _READ)
                    self._ended = not read
                    self._kept += read
        except OSError:  # the command has closed its end
            return
        finally:
            os.close(writer)


def _kind() -> str:
    """`file`, `pipe`, or "" for what is passed on as it is."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return ""
    if stat.S_ISREG(mode):
        return "file"
    return "pipe" if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else ""
