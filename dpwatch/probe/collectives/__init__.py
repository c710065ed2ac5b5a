"""Every collective and message: who issues it, when, how long it takes."""
