"""The gallery: persons and their templates, in the database and in a derived vector index."""
