"""Timeline: the last steps on one clock."""
