"""Networks that another process runs: pixels and answers are in memory that both share."""
