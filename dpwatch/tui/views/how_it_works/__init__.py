"""How it works: what a strategy does in a step."""
