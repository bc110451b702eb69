"""An index on disk, so that a start need not read the whole database."""
