"""The gallery: persons and their templates, as SQL truth and as a derived vector index."""
