"""Alerts: what holds, and what is over."""
