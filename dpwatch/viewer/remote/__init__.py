"""Follows runs on other hosts over ssh."""
