"""From the state to what is seen: figures, sentences, rows."""
