"""What the SQL database holds: collections, persons, templates, changes, calibrations."""
