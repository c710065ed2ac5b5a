"""The hub process: receives records, keeps a run's state and serves it to viewers."""
