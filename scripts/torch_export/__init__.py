"""PyTorch checkpoints -> networks that `app.lab.export` proves and writes.

Where the weights come from (`checkpoint`), their graph (`source`), the landmark network of the
default pack (`landmarks`), and a file for each backbone, written from the papers with the names
that the published state dicts use.
"""
