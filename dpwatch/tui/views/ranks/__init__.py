"""Ranks: all of them on one screen."""
