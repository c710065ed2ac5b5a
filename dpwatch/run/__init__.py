"""A run, pure: no socket, no file, no clock of its own."""
