"""What the process prints."""
