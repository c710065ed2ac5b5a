"""Trains under several strategies in turn and compares them."""
