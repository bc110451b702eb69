"""Many photos, or embeddings, into a collection: from folders, tables and archives, resumable."""
