"""The bundled trainer: real training under each scheme of data parallelism."""
