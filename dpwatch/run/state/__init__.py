"""A run's state: data, which `apply` alone changes."""
