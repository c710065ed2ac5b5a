"""What memory is used for: read and walked, or followed by the exact ledger."""
