"""The laboratory: evaluation, export of networks, model packs. The service imports none of it."""
