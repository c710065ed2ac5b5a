"""Alerts: active and resolved ones."""
