"""The answers over the wire, with examples that validate."""
