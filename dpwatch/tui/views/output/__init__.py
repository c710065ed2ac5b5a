"""Output: what ranks have printed."""
