"""What hub and viewers say to each other."""

from __future__ import annotations

import struct

VIEW_REQUEST = b"view"
"""Asks for the run's view; the number of the view that the viewer has may follow."""

VIEW_NUMBER = struct.Struct("!Q")

STATE_REQUEST = b"state"
"""Asks for the whole state."""

COMMAND_REQUEST = b"command"
"""Says what has become of the command that started the run: a `Command` follows. No answer."""

VIEW, SAME, STATE = b"v", b"=", b"s"
"""What an answer begins with: a view or changes follow; there is no newer one; a state follows."""
