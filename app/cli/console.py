"""What the commands share: where they print, how they end, which collection is theirs, and whether
there is a database."""

import difflib
import errno
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from app.errors import DatabaseError, LikenessError
from app.findings import findings
from app.settings import Settings
from app.store.backends import missing_file
from app.store.identifiers import DEFAULT_COLLECTION

if TYPE_CHECKING:  # it loads NumPy
    from app.store.database import Database

EXIT_CANNOT_START = 2
PREFIX = "LIKENESS_"
# Similarity of a variable's name and a setting's that counts as a misspelling (difflib's ratio).
MISSPELT = 0.75
# Names that others set on purpose: other programs' parts of a deployment, commands that take a key
# from the environment, and Kubernetes for a Service that is called likeness.
NOT_SETTINGS = re.compile(r"PUBLISH|API_KEY|SOURCE_KEY|SERVICE_(HOST|PORT)\w*|PORT_\d+_\w+")

BYTES_LEFT = (
    "Bytes of deleted rows are still in the database's files. A service erases them when it starts "
    "the next time: restart it."
)

# All but the line feed and the tab: a terminal would obey them.
_CONTROLS = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f]")


class _Console(Console):
    """Shows control characters of strings: names in archives and answers of servers may have any.
    (Not those of rich's Text objects, which no command makes of such a string.)"""

    def render_str(self, text: str, **given: Any) -> Text:
        return super().render_str(
            _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text), **given
        )


# Otherwise :x: in a name or a path is printed as a picture.
out = _Console(emoji=False)
err = _Console(stderr=True, emoji=False)


def warn(sentence: str) -> None:
    """Print a warning on standard error."""
    err.print(sentence, style="yellow", markup=False, highlight=False, soft_wrap=True)


def finish_erasure(database: "Database") -> None:
    """Erase the bytes of what a command deleted or replaced; warn if some are left."""
    done = False
    try:
        with err.status("Erasing the bytes of deleted rows"):
            done = database.eraser.finish()
    finally:  # also at Ctrl-C
        if not done:
            warn(BYTES_LEFT)


@contextmanager
def clear_errors() -> Iterator[None]:
    """End with status 2 and the error's own sentence, without a traceback."""
    try:
        yield
    except LikenessError as error:
        err.print(f"[bold red]{error.title}.[/] ", end="")
        err.print(error.detail, markup=False, highlight=False, soft_wrap=True)
        sys.exit(EXIT_CANNOT_START)


_OF_PATHS = frozenset({
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR,
    errno.EISDIR, errno.ELOOP,
})  # fmt: skip


class PathRefused(LikenessError):
    """The system refuses a path that a command uses."""

    code, title = "path_refused", "A file or folder cannot be used"


def refused_path(error: OSError) -> LikenessError | None:
    """The error of the system as one of the service; None if the path is not what is wrong."""
    if error.filename is None or error.errno not in _OF_PATHS:
        return None
    return PathRefused(
        f"{error.filename}: {error.strerror}. Check the path, and what this user may do there."
    )


class ExtraNotInstalled(LikenessError):
    """A command needs packages that the service does not have."""

    code, title = "extra_not_installed", "A package is missing"


def require_extra(extra: str, purpose: str, *modules: str) -> None:
    """Check, before any work, that the modules of an extra can be imported.

    `purpose` begins the sentence: "The report of --output". Raises ExtraNotInstalled.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ExtraNotInstalled(
            f"{purpose} needs {' and '.join(missing)}, which the service does not need. Install "
            f"the extra {extra}: make {extra} in a checkout, or pip install 'likeness[{extra}]'."
        )


def read_settings() -> Settings:
    """Settings from the environment, or an exit that names the variable at fault."""
    if found := misspelt_settings(os.environ):
        for name, nearest in found.items():
            err.print(f"{name} is not a setting. Did you mean {nearest}?", markup=False,
                      highlight=False)  # fmt: skip
        raise typer.Exit(EXIT_CANNOT_START)
    try:
        return Settings()
    except ValidationError as error:
        errors = error.errors()
        inputs = {str(item["loc"][0]): item["input"] for item in errors}
        for place, message in findings(errors):
            field = place.partition(".")[0]
            name, value = PREFIX + field.upper(), inputs[field]
            err.print(f"{name}={value}: {message}{_hint(name, value)}",
                      markup=False, highlight=False, soft_wrap=True)  # fmt: skip
        raise typer.Exit(EXIT_CANNOT_START) from error


def misspelt_settings(variables: Iterable[str]) -> dict[str, str]:
    """`LIKENESS_` variables whose names are almost those of settings, each with the nearest one.
    `ignored_settings` gives the others."""
    found = {}
    for variable in ignored_settings(variables):
        name = variable.upper().removeprefix(PREFIX)
        for nearest in difflib.get_close_matches(name, _names(), 1, MISSPELT):
            found[variable] = PREFIX + nearest
    return found


def ignored_settings(variables: Iterable[str]) -> list[str]:
    """`LIKENESS_` variables that are neither settings nor known to be meant for others."""
    known = _names()
    given = [(one, one.upper().removeprefix(PREFIX)) for one in variables]
    return [
        variable
        for variable, name in given
        if variable.upper() == PREFIX + name
        and name not in known
        and not NOT_SETTINGS.fullmatch(name)
    ]


def _names() -> list[str]:
    return [field.upper() for field in Settings.model_fields]


def _hint(name: str, value: object) -> str:
    """What to do about a value that only one program sets."""
    if name == "LIKENESS_PORT" and str(value).startswith("tcp://"):
        return (
            ". Kubernetes sets it for a Service that is called likeness: set enableServiceLinks: "
            "false in the pod, or call the Service otherwise"
        )
    return ""


# Every command that works on a collection has --collection. Those that work on nothing else also
# take its name as their argument.
CollectionArgument = Annotated[
    str | None,
    typer.Argument(metavar="collection", help="The same as --collection."),
]
CollectionOption = Annotated[
    str | None,
    typer.Option("--collection", help=f"Name of the collection; default: {DEFAULT_COLLECTION}."),
]


def collection_name(argument: str | None, option: str | None) -> str:
    """The collection that a command's argument or --collection names; `default` without both.

    Raises typer.BadParameter, which ends the command with status 2, if they name two collections.
    """
    if argument is not None and option is not None and argument != option:
        raise typer.BadParameter(
            f"The argument names the collection '{argument}', and --collection '{option}'. "
            "Give one of them."
        )
    return argument or option or DEFAULT_COLLECTION


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
