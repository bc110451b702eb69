"""The installed command `likeness`."""

import os


def main() -> None:
    """Run it."""
    # For how long (2 to that power, in cycles) NumPy's BLAS keeps its threads spinning after a
    # product: unasked for a tenth of a second, on cores that photos wait for.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    from app.cli.commands import app  # noqa: PLC0415 (Typer, Rich)

    app()
