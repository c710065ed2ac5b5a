"""A run's state, which `RunState.apply` alone changes."""
