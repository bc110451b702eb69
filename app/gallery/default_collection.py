"""The default collection, which is always there."""

from contextlib import suppress

from app.errors import CollectionExists, NotReembedded
from app.store.store import Store

DEFAULT_COLLECTION = "default"


def create_default_collection(store: Store, embedding_space: str, dimension: int) -> None:
    """Create it where it is missing."""
    with suppress(CollectionExists):  # several processes may start at the same moment
        store.collections.create(DEFAULT_COLLECTION, embedding_space, dimension, {})


def switch_default_collection(store: Store, embedding_space: str, dimension: int) -> None:
    """Switch it to another embedding space if it has no faces: it holds nothing that could not be
    compared, and a change of the pack needs no migration then. What only looks at a database does
    not do this."""
    record = store.collections.get(DEFAULT_COLLECTION)
    if record.embedding_space == embedding_space or store.collections.count(record).templates:
        return
    with suppress(NotReembedded):  # somebody was enrolled meanwhile
        store.alternate_embeddings.cut_over(DEFAULT_COLLECTION, embedding_space, dimension)
