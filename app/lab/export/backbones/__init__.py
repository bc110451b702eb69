"""Backbones whose checkpoints can be exported: written from the papers, with the names that the
published state dicts use."""
