"""The databases of the gallery's tests."""

from tests.gallery.conftest import (  # noqa: F401 (pytest finds fixtures by name)
    close_databases,
    database,
    directions,
    empty_url,
    engine_url,
    gallery,
    postgres_url,
    store,
)
