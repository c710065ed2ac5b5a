"""From styled lines to the terminal; only `private_api` uses Textual beyond its public API."""
