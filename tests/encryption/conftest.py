"""A cipher, and the databases of the gallery's tests."""

import pytest

from app.encryption.embeddings import EmbeddingCipher
from tests.encryption.keys import ring
from tests.gallery.conftest import (  # noqa: F401 (pytest finds fixtures by name)
    close_databases,
    database,
    directions,
    engine_url,
    gallery,
    postgres_url,
    store,
)


@pytest.fixture
def cipher() -> EmbeddingCipher:
    return EmbeddingCipher(ring("a"))
