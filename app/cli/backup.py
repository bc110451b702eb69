"""`likeness backup` and `likeness restore`: all collections to a file, and back."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from sqlalchemy import Engine

from app.access.keys import audit_key
from app.cli.console import err, finish_erasure, read_settings, require_database, warn
from app.cli.output import write_file
from app.encryption.ring import KeyRing
from app.errors import EncryptionKeyError, LikenessError
from app.gallery.backup_bodies import Held, dump, load, verify
from app.gallery.backup_stream import BackupError, encrypted, opened, read_blocks, write_blocks
from app.settings import Settings
from app.store.database import Database
from app.store.records import EncryptionState
from app.store.schema import opened_database
from app.store.sql.encryption import EncryptionStore
from app.store.store import Store

STREAM = Path("-")


def backup(
    target: Annotated[Path, typer.Argument(help="File to write; - for standard output.")],
    force: Annotated[bool, typer.Option(help="Replace a file that exists.")] = False,
    plain: Annotated[
        bool,
        typer.Option(
            help="Do not encrypt the backup as a whole, although a key is configured or the "
            "database is encrypted. Embeddings that are encrypted in the database stay encrypted."
        ),
    ] = False,
) -> None:
    """Write all collections, with their persons, faces and calibrations, as they are at one moment;
    the service can run meanwhile.

    With an encryption key the backup is encrypted by it. Without one, a database that is encrypted
    is refused, unless --plain is given. The key itself is not in the backup, nor are access keys
    and the audit log.
    """
    settings = read_settings()
    with opened_database(require_database(settings).resolved_database_url) as engine:
        ring = None if plain else KeyRing.from_settings(settings)
        encryption = Store(engine, ring=ring).encryption
        if not plain:
            _require_keys(encryption)
        if ring is None:
            warn(_readable(encryption.state()))
        pieces = write_blocks(dump(engine))
        if ring is not None:
            pieces = encrypted(ring, pieces)
        pieces = _noted(pieces, engine, settings)
        if target == STREAM:
            sys.stdout.buffer.writelines(pieces)
            return
        found: list[Held] = []

        def read_back(written: Path) -> None:
            with written.open("rb") as file:
                found.append(verify(read_blocks(opened(ring, file))))

        write_file(target, pieces, replace=force, check=read_back)
    _report(f"Written and read back: {target}", *found)


def restore(
    source: Annotated[Path, typer.Argument(help="A backup; - for standard input.")],
    replace: Annotated[
        bool, typer.Option(help="Replace the collections that the database has.")
    ] = False,
    verify_only: Annotated[
        bool, typer.Option("--verify", help="Check the backup; change nothing.")
    ] = False,
) -> None:
    """Put a backup into the database that the settings name, SQLite or PostgreSQL.

    The restore is one transaction. Running services use the restored data at once.
    """
    settings = read_settings()
    ring = KeyRing.from_settings(settings)
    with _source(source) as file:
        bodies = read_blocks(opened(ring, file))
        if verify_only:
            _report("The backup is complete and undamaged", verify(bodies))
            return
        with opened_database(settings.resolved_database_url) as engine:
            with err.status("Restoring"):
                held = load(engine, bodies, replace=replace, audit_key=audit_key(settings))
            _report("Restored", held)
            finish_erasure(Database(engine))
            if ring is not None and (plain := _plain(Store(engine).encryption.state())):
                warn(
                    f"{' and '.join(plain)} are stored unencrypted, as in the backup; likeness "
                    "encryption rotate encrypts them."
                )


def _require_keys(encryption: EncryptionStore) -> None:
    """Raise EncryptionKeyError unless the keys open what is stored: the backup would not be
    encrypted, or by a key that does not open its embeddings."""
    try:
        encryption.require_keys()
    except EncryptionKeyError as error:
        raise EncryptionKeyError(
            f"{error.detail} Or give --plain: then the backup itself is not encrypted."
        ) from error


def _noted(pieces: Iterator[bytes], engine: Engine, settings: Settings) -> Iterator[bytes]:
    """The pieces of a backup; before the first one an entry is written to the audit log. The backup
    is made also if that fails: it may be the last copy of a database that is damaged or cannot be
    written."""
    try:
        Store(engine, audit_key=audit_key(settings)).audit.record("backup.written")
    except LikenessError as error:
        warn(f"The audit log has no entry of this backup: {error.detail}")
    yield from pieces


def _readable(state: EncryptionState) -> str:
    """What can be read in a backup that is not encrypted, of a database in that state."""
    said = (
        "The backup is not encrypted. Anyone who has it can read "
        f"{' and '.join([*_plain(state), 'the ids and metadata of persons'])}."
    )
    if encrypted := state.encrypted + state.encrypted_alternates:
        keys = ", ".join(sorted(state.persons_by_key))
        said += f" {encrypted} embeddings in it are encrypted by {keys}."
    return said


def _plain(state: EncryptionState) -> list[str]:
    """What is stored unencrypted, with its number."""
    numbers = {
        "embeddings": state.plain + state.plain_alternates,
        "aligned faces": state.plain_crops,
    }
    return [f"{number} {kind}" for kind, number in numbers.items() if number]


@contextmanager
def _source(path: Path) -> Iterator[BinaryIO]:
    if path == STREAM:
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}.") from error
    with file:
        yield file


def _report(what: str, held: Held) -> None:
    counts = ", ".join(f"{number} {table}" for table, number in held.rows.items())
    err.print(f"{what}: {counts or 'nothing'}.", markup=False, highlight=False)
    if held.changed:
        err.print(
            f"{held.changed} objects of metadata or quality broke the rules of this version and "
            "were corrected. The backup still has the old values.",
            markup=False,
        )
    if held.withdrawn:
        err.print(
            f"{held.withdrawn} consents are valid in the backup and were withdrawn in the replaced "
            "database: they are withdrawn in the restored one too.",
            markup=False,
        )
    if held.clashes:
        err.print(
            f"{held.clashes} persons have an id that differs from another one's only in how its "
            "letters are composed; likeness doctor says how to merge or rename them.",
            markup=False,
        )
