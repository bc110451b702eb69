"""Backups: all that a database holds as one stream, from any engine and into any."""
