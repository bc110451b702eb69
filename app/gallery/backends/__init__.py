"""Database engines: what is particular to each, behind one function."""

from sqlalchemy import Engine, make_url
from sqlalchemy.exc import ArgumentError

from app.errors import DatabaseError
from app.gallery.backends import sqlite


def create_engine(url: str) -> Engine:
    """An engine for a database URL. Raises DatabaseError for a URL that cannot be served."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseError(
            f"LIKENESS_DATABASE_URL is not a database URL: {error}. "
            "Write sqlite:////absolute/path/likeness.db, or unset it."
        ) from error
    if parsed.get_backend_name() != "sqlite":
        raise DatabaseError(
            f"Databases of kind '{parsed.get_backend_name()}' are not supported yet; use SQLite."
        )
    return sqlite.create_engine(parsed)
