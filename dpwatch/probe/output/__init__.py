"""Captures what the process prints."""
