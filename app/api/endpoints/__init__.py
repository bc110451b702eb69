"""The calls, one file for each family: what they take and answer, examples, and the routes."""
