"""What hub and viewers say to each other beside the frames themselves."""

from __future__ import annotations

import struct

FRAME_NUMBER = struct.Struct("!Q")
"""Stands before each frame that a hub sends on; a gap tells a viewer to ask for the state."""

EVERY_FRAME, NO_FRAME = b"", b"\xff"
"""Topics: frames begin with their number, which never begins like the second."""

STATE_REQUEST = b"state"
LOOK_REQUEST = b"look"
COMMAND_REQUEST = b"command"
"""What a viewer's request begins with. After the last comes a `Command`, and no answer."""

STATE, LOOK, SAME = b"s", b"l", b"="
"""What an answer begins with: a state follows, a look follows, or the viewer has it already."""
