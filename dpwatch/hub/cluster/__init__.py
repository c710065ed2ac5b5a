"""A run over several hosts: one head, and nodes that join it."""
