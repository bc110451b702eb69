"""Which file of a snapshot the rows of an index are in, and how single rows leave it."""

from contextlib import suppress
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from app.index.certified.codes import Quantiser
from app.index.certified.rows import Rows
from app.index.certified.snapshots.files import RowsFile
from app.index.certified.snapshots.reading import MANIFEST, LoadedSnapshot
from app.index.port import Ids


class HeldFiles:
    """The files of one folder that this process has read or written. Used under the lock of its
    `SnapshotFolder`."""

    def __init__(self, folder: Path) -> None:
        self.quantiser: Quantiser | None = None
        self._folder = folder
        # Weak: rows that are searched no more are not kept because they are in a file. Nothing
        # would take out of them what is removed.
        self._name_of = WeakKeyDictionary[Rows, str]()
        self._plain: dict[str, RowsFile] = {}
        self._encrypted: dict[str, Ids] = {}  # the keys in each
        self._unsynced = False

    # --- which there are ---------------------------------------------------------------------

    def add_loaded(self, loaded: LoadedSnapshot) -> None:
        """The files of a snapshot that was read; rows that were read before are forgotten."""
        self._name_of = WeakKeyDictionary({one.rows: one.name for one in loaded.files})
        self._plain |= {one.name: one.file for one in loaded.files if one.file is not None}
        self._encrypted = {
            one.name: one.rows.keys[one.rows.alive] for one in loaded.files if one.file is None
        }
        self.quantiser = loaded.restored.quantiser

    def add_plain(self, name: str, rows: Rows, file: RowsFile, gone: Ids) -> None:
        """A file that was just written, from which the templates in `gone` are erased."""
        self._name_of[rows], self._plain[name] = name, file
        self._unsynced |= file.erase(gone, self.quantiser)

    def add_encrypted(self, name: str, rows: Rows, keys: Ids) -> None:
        """A file that was just written, with the templates of these keys."""
        self._name_of[rows], self._encrypted[name] = name, keys

    def name_of(self, rows: Rows) -> str | None:
        """The file that these rows are in."""
        return self._name_of.get(rows)

    def names(self) -> set[str]:
        """The files of all rows that are searched."""
        return set(self._name_of.values())

    def rows(self) -> list[Rows]:
        """The rows that are in a file."""
        return list(self._name_of)

    def there(self) -> set[str]:
        """The files that erasures have left in place."""
        return {*self._plain, *self._encrypted}

    def keep_only(self, names: set[str]) -> None:
        """Forget all files but these."""
        held = [(rows, name) for rows, name in self._name_of.items() if name in names]
        self._name_of = WeakKeyDictionary(held)
        self._plain = {name: file for name, file in self._plain.items() if name in names}
        self._encrypted = {name: keys for name, keys in self._encrypted.items() if name in names}

    def clear(self) -> None:
        """Forget all files."""
        self.keep_only(set())

    # --- erase -------------------------------------------------------------------------------

    def erase(self, keys: Ids) -> None:
        """Erase templates from all files. A file that fails keeps no other from it; raises the
        first OSError at the end."""
        failed: OSError | None = None
        for name, file in list(self._plain.items()):
            try:
                self._unsynced |= file.erase(keys, self.quantiser)
            except FileNotFoundError:  # another owner removed it meanwhile
                del self._plain[name]
            except OSError as error:
                self._unsynced = True  # it may have been written in part
                failed = failed or error
        self.erase_encrypted(keys)
        if failed is not None:
            raise failed

    def erase_encrypted(self, keys: Ids) -> None:
        """Remove encrypted files that hold one of these templates, and the manifest that names
        them; they are written again."""
        stale = [name for name, held in self._encrypted.items() if np.isin(keys, held).any()]
        for name in stale:
            (self._folder / MANIFEST).unlink(missing_ok=True)
            (self._folder / name).unlink(missing_ok=True)
            self.keep_only(self.there() - {name})

    def sync(self) -> None:
        """Wait until what was erased is gone from the disk too."""
        if self._unsynced:
            for file in self._plain.values():
                with suppress(FileNotFoundError):  # another owner removed it meanwhile
                    file.sync()
            self._unsynced = False

    # --- files of another process ------------------------------------------------------------

    def has_removed(self) -> bool:
        """Whether rows that were removed are still read from a file."""
        return any(
            not one.alive.all() and not one.vectors.flags.writeable for one in list(self._name_of)
        )

    def copy_lost(self) -> None:
        """Rows whose file its owner has replaced: nobody erases what is removed from them, so they
        are copied once something is."""
        for rows, name in self._name_of.items():
            if rows.vectors.flags.writeable or rows.alive.all():
                continue
            if not (self._folder / name).exists():
                rows.copy_vectors()
        there = {name for name in self._plain if (self._folder / name).exists()}
        self._plain = {name: file for name, file in self._plain.items() if name in there}
