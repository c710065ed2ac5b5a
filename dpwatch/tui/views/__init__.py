"""One module or folder per view."""
