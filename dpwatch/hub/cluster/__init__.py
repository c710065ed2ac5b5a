"""Runs over several hosts: one head hub, and node hubs that join it."""
