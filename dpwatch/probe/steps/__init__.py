"""Where steps begin and end, and what a thread does in them."""
