"""The derived index: exact search over every template, and its snapshot on disk."""
