"""Stacks: the ranks' Python stacks."""
