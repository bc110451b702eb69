"""`likeness attest`: a signed statement of error rates, against a requirement."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from app.cli.console import err, out, read_settings, require_database
from app.cli.evaluate import open_analyser, show_progress
from app.cli.output import require_not_read, require_writable, write_public_file
from app.decision.face_selection import FaceSelection
from app.decision.policy import CollectionPolicy
from app.disk import sha256
from app.lab.attestation.cells import STRATA
from app.lab.attestation.document import (
    MAX_BYTES,
    AttestationError,
    InvalidAttestation,
    compare,
    fingerprint,
    generate_key,
    read_private_key,
    read_public_key,
    sign,
    verify,
)
from app.lab.attestation.requirement import RequirementOutcome, find_requirement
from app.lab.attestation.run import (
    FolderSource,
    Wanted,
    attest_collection,
    attest_folder,
)
from app.lab.evaluation.labels import LabelNoise, read_attributes, read_label_noise, read_people
from app.services import build_services
from app.types import JsonObject

# 1 is a crash and 2 an error with its sentence, as in all commands.
EXIT_CODES = {
    RequirementOutcome.PASS: 0,
    RequirementOutcome.FAIL: 3,
    RequirementOutcome.UNDECIDED: 4,
}
EXIT_INVALID = 5
EXIT_DRIFT = 6


class MeasureByDefault(TyperGroup):
    """`likeness attest SOURCE` is short for `likeness attest measure SOURCE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help", "-h"}:
            args = ["measure", *args]
        return super().parse_args(ctx, args)


attest_app = typer.Typer(
    cls=MeasureByDefault,
    help=(
        "Measure error rates and sign the result: `likeness attest COLLECTION|FOLDER "
        "--key FILE --output FILE`, which is short for `likeness attest measure ...`. "
        "Exit status 0: the requirement is met; 3: not met; "
        "4: undecided, because there are too few people, the gallery is too small, or groups or "
        "strata that the requirement asks for were not measured; 5: the attestation is not valid; "
        "6: worse than the earlier attestation; 2: any other error."
    ),
    no_args_is_help=True,
    add_completion=False,
)


@attest_app.command()
def keygen(
    path: Annotated[
        Path,
        typer.Argument(help="File of the private key; the public key is written to PATH.pub."),
    ],
) -> None:
    """Make an Ed25519 key pair."""
    public = generate_key(path)
    out.print(
        f"{path}: private key, which signs attestations; keep it secret",
        markup=False,
        highlight=False,
    )
    out.print(f"{path}.pub: public key, which verifies them", markup=False, highlight=False)
    out.print(fingerprint(public), markup=False, highlight=False, soft_wrap=True)


Source = Annotated[
    str,
    typer.Argument(
        help="The name of a collection, or a folder with one subfolder for each person."
    ),
]
PrivateKey = Annotated[Path, typer.Option(help="Private key, made by likeness attest keygen.")]
Groups = Annotated[Path | None, typer.Option(help="CSV of groups (person,<attribute>,…).")]
Persons = Annotated[
    int | None, typer.Option(min=1, help="Number of persons that the service is meant to have.")
]
Earlier = Annotated[
    Path | None, typer.Option("--compare", help="An earlier attestation by the same key.")
]
TargetFpir = Annotated[
    float | None,
    typer.Option(
        min=1e-9, max=0.5, help="Of a folder: target FPIR that the threshold is chosen for."
    ),
]
Noise = Annotated[
    Path | None,
    typer.Option(
        help="Of a folder: CSV of known mistakes in the labels, as for likeness evaluate."
    ),
]
FaceOption = Annotated[
    FaceSelection,
    typer.Option(
        help="Of a folder: which face is used if a photo has several: only, largest or centre."
    ),
]
Strata = Annotated[
    bool,
    typer.Option(
        help="Of a folder: measure degraded photos too, which takes several times as long."
    ),
]
Cache = Annotated[
    bool,
    typer.Option(
        help=(
            "Of a folder: store what is computed of its photos in the data folder, for the next "
            "run."
        )
    ),
]


@attest_app.command()
def measure(
    source: Source,
    *,
    key: PrivateKey,
    output: Annotated[Path, typer.Option(help="The signed file.")],
    requirement: Annotated[str, typer.Option(help="sp800-63a-4, or a TOML file.")] = "sp800-63a-4",
    attributes: Groups = None,
    gallery_size: Persons = None,
    compare_with: Earlier = None,
    target_fpir: TargetFpir = None,
    label_noise: Noise = None,
    face: FaceOption = FaceSelection.CENTRE,
    strata: Strata = True,
    cache: Cache = True,
) -> None:
    """Measure FPIR and FNIR by group and stratum, compare with a requirement, sign the result."""
    private = read_private_key(key)
    require_writable(output)
    # An earlier attestation may be replaced.
    require_not_read(output, (key, attributes, label_noise, Path(requirement), Path(source)))
    before = None if compare_with is None else verify(_read(compare_with), private.public_key())
    wanted = _wanted(requirement, attributes, gallery_size)
    if Path(source).is_dir():
        folder = _folder_source(Path(source), target_fpir, label_noise, face, strata=strata)
        statement = _folder(folder, wanted, keep=cache)
    else:
        _refuse_options_of_folders(source, target_fpir, label_noise)
        statement = _collection(source, wanted)
    write_public_file(output, sign(statement, private))
    _print(statement)
    err.print(f"Written: {output}", markup=False, highlight=False)
    drifted = before is not None and _print_drift(before, statement)
    raise typer.Exit(_status(statement, drifted=drifted))


def _folder_source(
    path: Path, target_fpir: float | None, noise: Path | None, face: FaceSelection, *, strata: bool
) -> FolderSource:
    default = CollectionPolicy()
    policy = default if target_fpir is None else CollectionPolicy(target_fpir=target_fpir)
    mistakes = read_label_noise(noise) if noise else LabelNoise()
    return FolderSource(read_people(path), policy, mistakes, face, STRATA if strata else {})


def _refuse_options_of_folders(
    source: str, target_fpir: float | None, label_noise: Path | None
) -> None:
    if target_fpir is not None or label_noise is not None:
        raise AttestationError(
            f"{source} is not a folder, so it is taken for a collection, which is measured at "
            "its own policy: --target-fpir and --label-noise are for folders."
        )


@attest_app.command("verify")
def verify_file(
    path: Annotated[Path, typer.Argument(help="The signed file.")],
    key: Annotated[Path, typer.Option(help="Public key of the expected signer.")],
    earlier: Earlier = None,
) -> None:
    """Check the signature, show what was attested, and end with the status of its outcome."""
    public = read_public_key(key)
    try:
        statement = verify(_read(path), public)
        outcome = _status(statement, drifted=False)
        before = None if earlier is None else verify(_read(earlier), public)
        _print(statement)
        drifted = before is not None and _print_drift(before, statement)
    except InvalidAttestation as error:
        _print_invalid(error)
        raise typer.Exit(EXIT_INVALID) from error
    out.print(f"Signed by {fingerprint(public)}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_DRIFT if drifted else outcome)


def _wanted(requirement: str, attributes: Path | None, gallery_size: int | None) -> Wanted:
    found = find_requirement(requirement)
    if attributes is None:
        return Wanted(found, gallery_size)
    groups = read_attributes(attributes)
    return Wanted(found, gallery_size, groups, sha256(attributes))


def _folder(source: FolderSource, wanted: Wanted, *, keep: bool) -> JsonObject:
    with open_analyser(None, keep=keep) as (pack, analyser):
        return attest_folder(source, wanted, pack, analyser, show_progress)


def _collection(name: str, wanted: Wanted) -> JsonObject:
    services = build_services(require_database(read_settings()))
    try:
        return attest_collection(
            name, wanted, services.pack, services.gallery, services.calibrations
        )
    finally:
        services.close()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise AttestationError(f"{path} cannot be read: {error.strerror}.") from error


def _status(statement: JsonObject, *, drifted: bool) -> int:
    try:
        status = EXIT_CODES[RequirementOutcome(str(statement["outcome"]))]
    except (KeyError, ValueError) as error:
        raise InvalidAttestation("Its statement names no outcome.") from error
    return EXIT_DRIFT if drifted else status


def _print_invalid(error: InvalidAttestation) -> None:
    err.print(f"[bold red]{error.title}.[/] ", end="")
    err.print(error.detail, markup=False, highlight=False, soft_wrap=True)


def _print(statement: Any) -> None:
    requirement = statement["requirement"]
    out.print(
        f"{str(statement['outcome']).upper()}: {requirement['name']}, FPIR ≤ "
        f"{requirement['fpir']:g} in a gallery of {statement['gallery_persons_to_search']:,} "
        f"persons at least, threshold {statement['threshold']['value']:.3f}",
        style="bold", markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    table = Table("group", "photos", "gallery", "FPIR (one-sided bounds)", "FNIR", "outcome")
    for row in statement["cells"]:
        stratum = row["stratum"]
        if row["degraded"] != "none":
            stratum += f" ({row['degraded']})"
        gallery = f"{row['gallery_persons']:,}"
        if not row["gallery_large_enough"]:
            gallery += " (too small)"
        cells = (row["group"], stratum, gallery, _rate(row["fpir"]), _rate(row["fnir"]), _said(row))
        table.add_row(*map(escape, cells))
    out.print(table)
    for point in statement["undecided_because"]:
        out.print(point, markup=False, highlight=False)
    # Statements of earlier versions do not say it.
    for attribute, people in statement.get("people_without_group", {}).items():
        if people:
            out.print(
                f"{people:,} of the people who were measured have no group by {attribute}; they "
                "count for everybody only.",
                markup=False, highlight=False,
            )  # fmt: skip


def _said(row: Any) -> str:
    """The outcome, and what would decide it."""
    open_rates = [rate for rate in (row["fpir"], row["fnir"]) if rate.get("outcome") == "undecided"]
    if not open_rates:
        return str(row["outcome"])
    needed = [rate["people_needed"] for rate in open_rates]
    if None in needed:
        return f"{row['outcome']} (too near the limit)"
    return f"{row['outcome']} ({max(needed):,} people needed)"


def _rate(row: Any) -> str:
    if row["rate"] is None:
        return "–"
    bounds = f"{row['low']:.2%}–{row['high']:.2%}"
    return f"{row['errors']:,} of {row['searches']:,} = {row['rate']:.2%} ({bounds})"


def _print_drift(earlier: JsonObject, later: JsonObject) -> bool:
    """Show what changed since; whether anything is worse."""
    found = compare(earlier, later)
    for line in found.worse:
        out.print(f"Worse: {line}", markup=False, highlight=False, soft_wrap=True)
    if found.changed:
        out.print(f"Since {earlier['created_at']}: {', '.join(found.changed)}.", markup=False,
                  highlight=False, soft_wrap=True)  # fmt: skip
    if not found.worse:
        out.print("Nothing is worse than in the earlier attestation.", highlight=False)
    return bool(found.worse)
