"""One module or folder a view."""
