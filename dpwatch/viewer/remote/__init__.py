"""Runs on other hosts, over ssh."""
