"""Trains under several strategies in turn and shows them side by side."""
