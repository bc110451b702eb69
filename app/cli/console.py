"""What the commands share: where they print and how they end."""

import difflib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError
from rich.console import Console

from app.errors import LikenessError
from app.settings import Settings

EXIT_CANNOT_START = 2
PREFIX = "LIKENESS_"
# Similarity of a variable's name and a setting's that counts as a misspelling (difflib's ratio).
MISSPELT = 0.8

out = Console()
err = Console(stderr=True)


@contextmanager
def clear_errors() -> Iterator[None]:
    """End with status 2 and the error's own sentence, without a traceback."""
    try:
        yield
    except LikenessError as error:
        err.print(f"[bold red]{error.title}.[/] ", end="")
        err.print(error.detail, markup=False, highlight=False, soft_wrap=True)
        sys.exit(EXIT_CANNOT_START)


class ExtraNotInstalled(LikenessError):
    """A command needs packages that the service does without."""

    code, title = "extra_not_installed", "A package is missing"


def require_extra(extra: str, purpose: str, *modules: str) -> None:
    """Check, before any work, that the modules of an extra can be imported.

    `purpose` begins the sentence: "The report of --output". Raises ExtraNotInstalled.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ExtraNotInstalled(
            f"{purpose} needs {' and '.join(missing)}, which the service does without. Install "
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
        for item in error.errors():
            name = f"LIKENESS_{str(item['loc'][0]).upper()}"
            err.print(f"{name}={item['input']}: {item['msg']}", markup=False, highlight=False)
        raise typer.Exit(EXIT_CANNOT_START) from error


def misspelt_settings(variables: Iterable[str]) -> dict[str, str]:
    """`LIKENESS_` variables whose names are almost those of settings, each with the nearest one.

    Others are ignored: tests, benchmarks and Compose use LIKENESS_ variables too.
    """
    known = [field.upper() for field in Settings.model_fields]
    found = {}
    for variable in variables:
        name = variable.upper().removeprefix(PREFIX)
        if variable.upper().startswith(PREFIX) and name not in known:
            for nearest in difflib.get_close_matches(name, known, 1, MISSPELT):
                found[variable] = PREFIX + nearest
    return found
