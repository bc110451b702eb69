"""From similarities to decisions."""
