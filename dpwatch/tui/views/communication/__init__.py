"""Communication: what is exchanged, and between which devices."""
