"""The database that the settings name: whether there is one, and whether the pack matches it."""

import os
from typing import TYPE_CHECKING

from app.cli.console import err
from app.errors import DatabaseError
from app.settings import Settings
from app.store.backends import missing_file

if TYPE_CHECKING:  # it brings NumPy, FAISS and ONNX Runtime
    from app.services import Services


def no_database(settings: Settings) -> str | None:
    """What to say where there is no database yet; None where there is one, or a server.

    Nothing is created. Raises DatabaseError for a URL that cannot be served.
    """
    path = missing_file(settings.resolved_database_url)
    if path is None:
        return None
    return (
        f"No database yet at {path}; `likeness serve` creates it. If yours is in another folder, "
        "set LIKENESS_DATA_DIR."
    )


def data_folder(settings: Settings) -> str:
    """Where everything is kept, which depends on the working folder unless it is set."""
    folder = settings.data_dir.absolute()
    return f"Data folder {folder}{'' if os.path.lexists(folder) else ', which is new'}"


def announce_new_database(settings: Settings) -> None:
    """Print, to standard error, the data folder in which a command is about to make a database."""
    if no_database(settings):
        err.print(data_folder(settings), markup=False, highlight=False, soft_wrap=True)


def require_database(settings: Settings) -> Settings:
    """The settings, for a command that reads a gallery: a new one, empty, would be a wrong answer.

    Raises DatabaseError where there is none yet.
    """
    if missing := no_database(settings):
        raise DatabaseError(missing)
    return settings


def unmatched_pack(services: "Services") -> str | None:
    """A warning where faces are stored, but none of them in the embedding space of the pack."""
    store, pack = services.gallery.store, services.pack
    other = None
    for record in store.collections.every():
        ours = record.embedding_space == pack.embedding_space
        # A revision of 0 has never had faces: of many collections few need to be counted.
        if (
            (other is None or ours)
            and record.revision
            and store.collections.count(record).templates
        ):
            if ours:
                return None
            other = record
    if other is None:
        return None
    from app.inference.packs import packs_by_space  # noqa: PLC0415 it brings NumPy

    made_by = packs_by_space(services.settings.installed_packs).get(other.embedding_space)
    keep = f"={made_by}" if made_by else " to the pack that it was made with"
    return (
        f"The pack {pack.name} matches no collection that has faces: {other.name} is of the "
        f"embedding space {other.embedding_space}, the pack of {pack.embedding_space}. Enrollment "
        f"and search there answer 409. Set LIKENESS_PACK{keep}, or migrate it to the running pack: "
        f"likeness models migrate {other.name} --to {pack.name}"
    )
