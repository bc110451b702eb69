"""`likeness doctor`: does this installation work, and what does it run on?"""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from app import __version__
from app.cli.console import (
    err,
    finish_erasure,
    no_database,
    out,
    read_settings,
    require_database,
    warn,
)
from app.cli.stored_data import fix, stored_data
from app.cli.unmatched import names_of, not_checked, unmatched_collections, warning
from app.decision.calibration import Calibration
from app.decision.calibrations import pack_calibration
from app.decision.fitting import MIN_PERSONS
from app.encryption.ring import KeyRing
from app.errors import DamagedData
from app.faces.integers import SLOW
from app.faces.pipeline import FacePipeline
from app.gallery.gallery import Gallery
from app.gallery.index_check import CopyCheck
from app.index.device_rows import CudaDevice
from app.index.port import PRECISION, GallerySize
from app.inference.cpu_engine import INT8_SUFFIX, Cpu
from app.inference.cuda import CUDA_PROVIDER, TENSORRT_PROVIDER, gpu_name
from app.inference.machine import DescriptorLimit
from app.inference.pack_spec import ModelPack
from app.processes.starting import process_count
from app.services import Services, build_services, load_networks
from app.settings import Settings
from app.store.identifiers import DEFAULT_COLLECTION

# Distributions that own one module: two of a row break each other.
RIVALS = (
    ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs"),
    ("opencv-python", "opencv-python-headless", "opencv-contrib-python",
     "opencv-contrib-python-headless"),
)  # fmt: skip
# Values that ONNX Runtime accepts as true, in any case and with spaces around; checked with 1.32.
YES = frozenset({"1", "true", "yes", "y", "on"})


def doctor(
    check: Annotated[
        bool,
        typer.Option(
            help="Compare every template with the index. Run it while nothing is "
            "enrolled or deleted."
        ),
    ] = True,
    repair: Annotated[
        bool, typer.Option(help="Rebuild an index that differs from the database.")
    ] = False,
    fix_metadata: Annotated[
        Path | None,
        typer.Option(
            help="Correct stored metadata that breaks the rules, and write the old metadata to "
            "this new file, as JSON Lines."
        ),
    ] = None,
) -> None:
    """Load the pack, run its networks, compare the database with the index, and print the results.

    If there is no database yet, only the installation is checked, and nothing is created.
    """
    settings = read_settings()
    clash = [names for names in map(_installed, RIVALS) if len(names) != 1]
    if missing := no_database(settings):
        if repair or fix_metadata is not None:
            require_database(settings)
        _show(_installation_alone(settings), (missing,), clash)
        out.print("The installation has no faults.")
        return
    services = build_services(settings)
    rows = _facts(services)
    unmatched = unmatched_collections(services)
    names = _ours(services) if check else []
    unchecked = [not_checked(one) for one in unmatched] if check else []
    found = [_check_index(services.gallery, name, repair=repair) for name in names]
    store = services.gallery.store
    fixed = [] if fix_metadata is None else fix(store.integrity, fix_metadata)
    if fixed:
        finish_erasure(store.database)
    found += stored_data(store.integrity, repair=repair) if check else []
    services.close()
    _show(rows, (*fixed, *unchecked, *(line for line, _ in found)), clash)
    if said := warning(services, unmatched):
        warn(said)
    if not all(fine for _, fine in found):
        raise typer.Exit(1)
    if unmatched:
        out.print(
            "No fault was found in what was checked. Not checked: the faces of "
            f"{names_of(unmatched)}.",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        return
    out.print("No fault was found.")


def _show(rows: list[tuple[str, str]], lines: tuple[str, ...], clash: list[list[str]]) -> None:
    """Print what was found. Exits with status 1 where libraries break each other."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # paths are there to be read to the end
    for name, value in rows:
        table.add_row(name, value)
    out.print(table)
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if warning := DescriptorLimit.read().warning():
        err.print(f"[yellow]{warning}[/]", highlight=False)
    for names in clash:
        err.print(f"[red]Exactly one of these may be installed:[/] {', '.join(names) or 'none is'}")
    if clash:
        raise typer.Exit(1)
    if _reports_its_use():
        err.print(
            "ONNX Runtime sends usage reports to Microsoft and keeps a device id in the home "
            f"folder: ORT_DISABLE_TELEMETRY is {os.environ.get('ORT_DISABLE_TELEMETRY')!r}. "
            "To stop it, unset that variable or set it to 1.",
            markup=False,
        )


def _reports_its_use() -> bool:
    """Whether the operator has switched ONNX Runtime's telemetry on, which `app` switches off."""
    return os.environ.get("ORT_DISABLE_TELEMETRY", "").strip().lower() not in YES


def _ours(services: Services) -> list[str]:
    """Collections that this pack can compare."""
    space = services.pack.embedding_space
    every = services.gallery.store.collections.every()
    return [one.name for one in every if one.embedding_space == space]


def _check_index(gallery: Gallery, name: str, *, repair: bool) -> tuple[str, bool]:
    """A line about a collection's index, and whether the index is correct."""
    try:
        found = gallery.check_index(name)
        if repair and not found.index_matches:
            gallery.rebuild(name)
            found = gallery.check_index(name)
    except DamagedData as error:  # the others are still checked
        return f"{name}: not checked. {error.detail}", False
    if found.clean:
        return f"{name}: {found.templates} templates, the index equals the database", True
    advice = "" if found.index_matches else "; run likeness doctor --repair to rebuild the index"
    faults = [f"in the index in memory: {_faults(found.index)}"]
    if found.snapshot is not None:
        faults.append(f"in its snapshot: {_faults(found.snapshot)}")
    faults.append(f"its counts are wrong by {found.miscounted}")
    faults.append(f"{found.not_unit} are not unit vectors")
    return f"{name}: of {found.templates} templates, {'; '.join(faults)}{advice}", False


def _faults(copy: CopyCheck) -> str:
    return (
        f"{copy.missing} are missing, {copy.different} differ, {copy.unknown} are not in the "
        f"database, {copy.unerased} are removed but not erased"
    )


def _encryption(services: Services) -> str:
    state = services.gallery.store.encryption.state()
    keys = ", ".join(sorted(state.persons_by_key))
    if not state.encrypted:
        return f"none: {state.plain} templates are stored unencrypted"
    if state.plain:
        return f"mixed (key {keys}): {state.plain} are plain; run likeness encryption rotate"
    if beside := state.plain_crops + state.plain_alternates:
        return (
            f"mixed (key {keys}): {beside} aligned faces and alternate embeddings are plain; run "
            "likeness encryption rotate"
        )
    return f"every template is encrypted, key {keys}"


def _access_keys(services: Services) -> str:
    """Whether calls need a key. Raises AccessPepperDiffers."""
    services.access_keys.check_pepper()
    state = services.access.counts()
    if not state.created:
        return "none: programs of this machine call the service without a key"
    return f"every call needs one: {state.usable} are usable, of {state.created} that were created"


def _installed(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if _version(name) is not None]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _calibration(shipped: Calibration | None) -> str:
    if shipped is None:
        return "none: the pack's constant threshold decides"
    return (
        f"{shipped.calibration_id}, {shipped.source.persons} people, FMR down to "
        f"{shipped.lowest_fmr:.1g}"
    )


def _facts(services: Services) -> list[tuple[str, str]]:
    gallery = services.gallery
    # It may be of another pack, which a warning says.
    counts = gallery.store.collections.count(gallery.store.collections.get(DEFAULT_COLLECTION))
    return [
        *_installation(services.pack, services.pipeline, services.calibrations.pack),
        ("workers", str(services.scheduler.workers)),
        ("database", gallery.store.database.url),
        ("encryption", _encryption(services)),
        ("access keys", _access_keys(services)),
        ("default collection", f"{counts.persons} persons, {counts.templates} faces"),
        *_advice(services, counts),
    ]


def _advice(services: Services, counts: GallerySize) -> list[tuple[str, str]]:
    """A calibration counted on other people's faces is a second best, and so is one of an earlier
    version, which measured how much several templates of a person add by their number."""
    record = services.gallery.store.collections.get(DEFAULT_COLLECTION)
    if record.embedding_space != services.pack.embedding_space:
        return []
    own = services.calibrations.own(record)
    if counts.persons < MIN_PERSONS or (own is not None and own.score_exponents is not None):
        return []
    reason = "on its own faces"
    if own is not None:
        reason = f"again: its calibration of {own.created_at:%Y-%m-%d} is of an earlier version"
    return [("advice", f"likeness calibrate {DEFAULT_COLLECTION}, {reason}")]


def _installation_alone(settings: Settings) -> list[tuple[str, str]]:
    """What can be checked without a database. Raises the StartupError family."""
    pack, pipeline = load_networks(settings)
    try:
        if settings.index_device == "cuda":
            CudaDevice(processes=process_count(settings)).close()
        given = KeyRing.from_settings(settings) is not None
        shipped = pack_calibration(pack.folder, pack.embedding_space, PRECISION)
        rows = _installation(pack, pipeline, shipped)
        return [*rows, ("encryption", "a key is given" if given else "no key is given")]
    finally:
        pipeline.close()


def _runs_on(pipeline: FacePipeline) -> str:
    """The provider or engine, whether the CPU is slow at what it runs, and on CUDA what a network
    of float32 is multiplied in."""
    if pipeline.provider.endswith(INT8_SUFFIX) and Cpu.of_this_machine().lacks_int8:
        return f"{pipeline.provider}; {SLOW}"
    if pipeline.provider not in (CUDA_PROVIDER, TENSORRT_PROVIDER):
        return pipeline.provider
    return f"{pipeline.provider}, {gpu_name()}; networks of float32 in TF32"


def _installation(
    pack: ModelPack, pipeline: FacePipeline, shipped: Calibration | None
) -> list[tuple[str, str]]:
    libraries = [*RIVALS, ("openvino",)]
    engines = [f"{name} {_version(name)}" for row in libraries for name in _installed(row)]
    return [
        ("Likeness", f"{__version__} on Python {platform.python_version()}"),
        ("libraries", ", ".join(engines)),
        ("pack", f"{pack.folder} ({pack.embedding_space}), digests intact"),
        ("calibration", _calibration(shipped)),
        (
            "ONNX Runtime's telemetry",
            "on, by ORT_DISABLE_TELEMETRY" if _reports_its_use() else "off",
        ),
        ("runs on", _runs_on(pipeline)),
        *(
            (f"on the CPU, of {network}", ", ".join(nodes))
            for network, nodes in pipeline.cpu_nodes.items()
        ),
        ("open files", str(DescriptorLimit.read())),
    ]
