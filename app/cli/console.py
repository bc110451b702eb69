"""What the commands share: where they print and how they end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic import ValidationError
from rich.console import Console

from app.errors import LikenessError
from app.settings import Settings

EXIT_CANNOT_START = 2

out = Console()
err = Console(stderr=True)


@contextmanager
def clear_errors() -> Iterator[None]:
    """End with status 2 and the error's own sentence, without a traceback."""
    try:
        yield
    except LikenessError as error:
        err.print(f"[bold red]{error.title}.[/] ", end="")
        err.print(error.detail, markup=False, highlight=False)
        sys.exit(EXIT_CANNOT_START)


def read_settings() -> Settings:
    """Settings from the environment, or an exit that names the variable at fault."""
    try:
        return Settings()
    except ValidationError as error:
        for item in error.errors():
            name = f"LIKENESS_{str(item['loc'][0]).upper()}"
            err.print(f"{name}={item['input']}: {item['msg']}", markup=False, highlight=False)
        raise typer.Exit(EXIT_CANNOT_START) from error
