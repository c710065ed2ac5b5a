"""What a script of these tests found, told to the test that runs it."""

import json
import os
import sys


def report(found):
    """Prints what was found as the last line, and ends the process at once.

    What torch does when the interpreter ends is not the question there, and now and then it aborts:
    its threads drop tensors that they hold, and may not enter Python any more (pytorch 190489).
    """
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
