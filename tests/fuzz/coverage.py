"""The same target led by coverage: `python -m tests.fuzz.coverage [-runs=N] [-seed=N]`.

It needs atheris (`pip install atheris`), and says so where it isn't there.
"""

import sys

try:
    import atheris
except ImportError:
    sys.exit("skipped: this one needs atheris (pip install atheris)")

with atheris.instrument_imports(include=["dpwatch"]):
    from dpwatch.cli.output import json_text, report
    from dpwatch.run.derive.summarize import view
    from dpwatch.run.diagnose.advance import advance
    from dpwatch.run.state.run_state import RunState
    from dpwatch.wire import codec

FRAMES_A_STATE = 200


class Target:
    """Frames into a state; now and then it is shown and begun anew."""

    def __init__(self):
        self.state = RunState("run")

    def __call__(self, data):
        try:
            batch = codec.decode(data)
        except codec.WireError:
            return
        advance(self.state, batch)
        if self.state.frames >= FRAMES_A_STATE:
            shown = view(self.state)
            report([shown.run])
            json_text([shown.run])
            self.state = RunState("run")


def mutate(data, max_size, seed):
    """libFuzzer's own changes, and every other time ours, which keep frames whole."""
    from tests.fuzz.mutations import Mutator

    return Mutator(seed).next()[:max_size] if seed % 2 else atheris.Mutate(data, max_size)


def main():
    atheris.Setup(sys.argv, Target(), custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
