"""What hubs and viewers exchange besides the frames themselves."""

from __future__ import annotations

import struct

FRAME_NUMBER = struct.Struct("!Q")
"""Precedes each frame that a hub publishes; after a gap a viewer requests the state."""

EVERY_FRAME, NO_FRAME = b"", b"\xff"
"""Subscription topics. Frames start with their number, which never starts with the second topic."""

STATE_REQUEST = b"state"
LOOK_REQUEST = b"look"
COMMAND_REQUEST = b"command"
"""First part of a viewer's request. `COMMAND_REQUEST` is followed by a `Command` and gets no
answer."""

STATE, LOOK, SAME = b"s", b"l", b"="
"""First part of an answer: a state follows, a view follows, or the viewer is up to date."""
