"""A trainer that trains for real under each scheme of data parallelism."""
