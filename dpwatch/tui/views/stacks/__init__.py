"""Stacks: where ranks stand in their Python."""
