"""The truth in SQL: collections, persons, templates, changes, calibrations."""
