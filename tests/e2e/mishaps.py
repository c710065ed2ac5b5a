"""`every_loss.py ddp` that waits at step `AT` until a file exists, and keeps books of its records.

`mishaps.py WHAT STEPS STORE GO` with WHAT one of: wait; clock (set back by an hour there); fork (a
child that lives on for a while); files (no file descriptor is left from there on).
On stderr each rank writes `books RANK recorded DRAINED dropped SENT`, as the probe itself counts.
"""

import os
import resource
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import every_loss

from dpwatch.probe.send.publisher import Publisher
from dpwatch.probe.send.recorder import Recorder

AT = 20
HOUR_S = 3600
what, steps, store, go = sys.argv[1:5]
loader, train = every_loss.loader, every_loss.train
append, drain = Recorder.append, Recorder.drain
close = Publisher.close
books = {"recorded": 0, "drained": 0, "dropped": 0, "sent": 0}


def counting_append(self, record):
    books["recorded"] += 1
    append(self, record)


def counting_drain(self, most):
    taken = drain(self, most)
    books["drained"] += len(taken)
    return taken


def counting_close(self, *arguments, **options):
    close(self, *arguments, **options)
    books["dropped"], books["sent"] = self.dropped, self._sent


def mishap():
    if what == "clock":
        wall, wall_ns = time.time, time.time_ns
        time.time = lambda: wall() - HOUR_S
        time.time_ns = lambda: wall_ns() - HOUR_S * 10**9
    elif what == "fork" and os.fork() == 0:
        time.sleep(0.5)
        os._exit(0)
    elif what == "files":
        highest = max(map(int, os.listdir("/proc/self/fd")))
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest)]  # the gaps too
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))


def waiting_loader(*arguments, **options):
    for number, tokens in enumerate(loader(*arguments, **options)):
        if number == AT:
            mishap()
            while not os.path.exists(go):
                time.sleep(0.02)
        yield tokens


def told_train(strategy, steps, rank, ranks):
    train(strategy, steps, rank, ranks)
    sys.stderr.write(f"books {rank} {' '.join(map(str, books.values()))}\n")


every_loss.loader, every_loss.train = waiting_loader, told_train
Recorder.append, Recorder.drain = counting_append, counting_drain
Publisher.close = counting_close

if __name__ == "__main__":
    every_loss.train_ddp(store, int(steps))
