"""The attacks, a file a kind. A new file is named here."""

from tests.hostile.attacks import bodies, connections

__all__ = ["bodies", "connections"]
