"""Attacks against a running service; README.md says how to run them and how to add one."""
