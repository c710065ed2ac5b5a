"""Sends records to the hub."""
