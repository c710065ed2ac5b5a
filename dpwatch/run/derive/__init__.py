"""Pure functions that derive figures, sentences and rows from the state."""
