"""The attacks, a file per kind. A new file is named here."""

from tests.hostile.attacks import archives, bodies, connections, handshakes, photos, repeats

__all__ = ["archives", "bodies", "connections", "handshakes", "photos", "repeats"]
