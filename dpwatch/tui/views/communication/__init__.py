"""Communication: what is exchanged, and by which way."""
