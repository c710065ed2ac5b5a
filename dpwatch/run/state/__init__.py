"""The state of a run: plain data that only `apply` changes."""
