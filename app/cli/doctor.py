"""`likeness doctor`: does this installation work, and what does it run on?"""

import platform
from importlib.metadata import PackageNotFoundError, version

import typer
from rich.table import Table

from app import __version__
from app.cli.console import clear_errors, err, out, read_settings
from app.gallery.gallery import DEFAULT_COLLECTION
from app.services import Services, build_services

# Distributions that own one module: two of a row break each other.
RIVALS = (
    ("onnxruntime", "onnxruntime-gpu"),
    ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs"),
    ("opencv-python", "opencv-python-headless", "opencv-contrib-python",
     "opencv-contrib-python-headless"),
)  # fmt: skip


def doctor() -> None:
    """Load the pack, run its networks, open the database, and report."""
    settings = read_settings()
    clash = [names for names in map(_installed, RIVALS) if len(names) != 1]
    with clear_errors():
        services = build_services(settings)
        rows = _facts(services)
        services.close()
    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    out.print(table)
    for names in clash:
        err.print(f"[red]Exactly one of these may be installed:[/] {', '.join(names) or 'none is'}")
    if clash:
        raise typer.Exit(1)
    out.print("All is well.")


def _installed(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if _version(name) is not None]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _calibration(services: Services) -> str:
    shipped = services.calibrations.pack
    if shipped is None:
        return "none: the pack's constant threshold decides"
    return (
        f"{shipped.calibration_id}, {shipped.source.persons} people, FMR down to "
        f"{shipped.lowest_fmr:.1g}"
    )


def _facts(services: Services) -> list[tuple[str, str]]:
    gallery = services.gallery
    engines = [f"{name} {_version(name)}" for row in RIVALS for name in _installed(row)]
    counts = gallery.store.count(gallery.require(DEFAULT_COLLECTION))
    return [
        ("Likeness", f"{__version__} on Python {platform.python_version()}"),
        ("libraries", ", ".join(engines)),
        ("pack", f"{services.pack.folder} ({services.pack.embedding_space}), digests intact"),
        ("calibration", _calibration(services)),
        ("runs on", f"{services.pipeline.provider}, {services.scheduler.workers} workers"),
        ("database", str(gallery.store.describe()["database"])),
        ("default collection", f"{counts.persons} persons, {counts.templates} faces"),
    ]
