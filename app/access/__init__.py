"""Access keys: who may call what, in which collections."""
