"""The per-host side that takes in records, keeps a run's state and hands it to viewers."""
