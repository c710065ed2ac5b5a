"""The other end of a hub: whoever looks at runs."""
