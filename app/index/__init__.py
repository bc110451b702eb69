"""Exact search over templates: derived from the store, and replaceable. Knows no SQL and no
gallery."""
