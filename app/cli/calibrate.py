"""`likeness calibrate`: error rates of a collection's own faces."""

import secrets
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from app.cli.console import (
    CollectionArgument,
    CollectionOption,
    collection_name,
    err,
    out,
    read_settings,
    require_database,
)
from app.decision.calibration import SHOWN_FPIR
from app.decision.calibrations import calibrate_collection
from app.decision.thresholds import OperatingPoint, ThresholdRequest, operating_point
from app.services import build_services


def calibrate(
    name: CollectionArgument = None,
    *,
    named: CollectionOption = None,
    reset: Annotated[
        bool,
        typer.Option(
            help="Delete the collection's own calibration; the model pack's decides again, or "
            "its fixed threshold."
        ),
    ] = False,
) -> None:
    """Count error rates on a collection's own faces. From then on, thresholds come from these rates
    wherever they are known well enough.

    A running service over the same database uses the new calibration at once.
    """
    collection = collection_name(name, named)
    services = build_services(require_database(read_settings()))
    try:
        services.gallery.require(collection)
        if reset:
            services.gallery.store.calibrations.clear(collection)
            out.print(
                "The model pack's calibration decides again."
                if services.calibrations.pack is not None
                else f"The fixed threshold of {services.pack.name}, "
                f"{services.pack.decision.threshold:g}, decides again: that model pack has no "
                "calibration.",
                soft_wrap=True,
            )
            return
        generator = np.random.default_rng(secrets.randbits(64))
        live = calibrate_collection(
            services.gallery, collection, generator, domain=services.calibrations.domain
        )
        chain = services.calibrations.chain(services.gallery.require(collection))
        likeness = services.gallery.likeness(collection)
        size = services.gallery.size(collection)
    finally:
        services.close()
    source = live.calibration.source
    table = Table(
        "FPIR", "threshold", "mates missed", "calibration",
        title=f"{live.calibration.calibration_id}: {source.persons} people, {source.faces} faces",
    )  # fmt: skip
    for target in SHOWN_FPIR:
        request = ThresholdRequest(target_fpir=target)
        table.add_row(
            f"{target:g}", *_row(operating_point(request, chain, size, likeness=likeness))
        )
    out.print(table)
    for suspect in live.suspects:
        err.print(
            f"Probably one person: {suspect.person_id_a} and {suspect.person_id_b} "
            f"({suspect.similarity:.2f})",
            markup=False,
            highlight=False,
        )


def _row(point: OperatingPoint | None) -> tuple[str, str, str]:
    if point is None:
        return "out of reach", "", ""
    mark = " (extrapolated)" if point.extrapolated else ""
    missed = "" if point.fnmr is None else f"{point.fnmr.value:.1%}"
    whose = "this one" if point.calibration.source.kind == "collection" else "the pack's"
    return f"{point.threshold:.3f}{mark}", missed, whose
