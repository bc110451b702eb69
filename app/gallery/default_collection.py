"""The default collection, which is always there."""

from contextlib import suppress

from app.errors import CollectionExists, NotReembedded
from app.store.store import Store


def open_default_collection(store: Store, name: str, embedding_space: str, dimension: int) -> None:
    """Create it where it is missing. One without faces is switched to the embedding space: it holds
    nothing that could not be compared, and a change of the pack needs no migration then."""
    try:
        store.collections.create(name, embedding_space, dimension, {})
    except CollectionExists:  # several processes may start at the same moment
        record = store.collections.get(name)
        if record.embedding_space == embedding_space:
            return
        if store.collections.count(record).templates == 0:
            with suppress(NotReembedded):  # somebody was enrolled meanwhile
                store.alternate_embeddings.cut_over(name, embedding_space, dimension)
