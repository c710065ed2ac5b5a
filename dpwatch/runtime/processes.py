"""Whether a process of this host exists."""

from __future__ import annotations

import os


def exists(pid: int) -> bool:
    """Whether a process has that number, be it a zombie or someone else's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
