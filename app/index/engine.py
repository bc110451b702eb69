"""The search port, continued: an engine, and its indexes of one database."""

from typing import Protocol

from app.index.port import IndexedCollection, Position, SearchIndex


class IndexCatalog(Protocol):
    """The indexes of one database and their saved copies, which one process at a time may
    change."""

    def open(self, collection: IndexedCollection) -> SearchIndex:
        """The index of a collection, which is neither loaded nor built yet."""
        ...

    def own(self) -> bool:
        """Try to get the right to change the saved copies; returns whether this process has it."""
        ...

    def release(self) -> None:
        """Let another process get that right."""
        ...

    def saved(self) -> set[int]:
        """The keys of the collections that have a saved copy."""
        ...

    def may_be_saved(self, key: int) -> bool:
        """Whether templates of a collection are saved, by any process, complete or not."""
        ...

    def saved_position(self, key: int) -> Position | None:
        """The position of a collection's saved copy; None where there is none."""
        ...

    def remove(self, key: int) -> None:
        """Remove a collection's saved copy, where this process may."""
        ...


class SearchEngine(Protocol):
    """A way to search. One object for each process, which owns the threads and devices of its
    indexes."""

    @property
    def precision(self) -> str:
        """Of the similarities that it answers; a calibration holds for one precision."""
        ...

    @property
    def max_bytes(self) -> int:
        """Bytes of memory that open indexes may take together."""
        ...

    @property
    def least_saved(self) -> int:
        """Templates of the smallest index that is worth a saved copy."""
        ...

    def expected_memory(self, templates: int, dimension: int) -> int:
        """Bytes of memory that an index of so many templates will take, about."""
        ...

    def catalog(self, database: str) -> IndexCatalog:
        """The indexes of a database, which is named by its own id."""
        ...

    def close(self) -> None:
        """End the threads, free the devices."""
        ...
