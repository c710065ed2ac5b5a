"""Pure: numbers, words, bars, curves as styled text."""
