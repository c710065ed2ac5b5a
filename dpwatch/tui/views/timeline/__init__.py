"""Timeline: the last steps on a common clock."""
