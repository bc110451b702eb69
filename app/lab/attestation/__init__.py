"""Signed statements of what a collection's or a folder's error rates were found to be."""
