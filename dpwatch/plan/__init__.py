"""Theory as code: the bytes each scheme holds and sends. Torch-free."""
