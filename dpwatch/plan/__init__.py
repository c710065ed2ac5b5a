"""Theory as code: what each scheme holds and sends. Needs no torch."""
