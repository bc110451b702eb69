"""Several processes behind one address: a parent accepts, its children serve."""
