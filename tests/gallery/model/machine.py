"""A state machine that drives galleries over one database beside dictionaries of the truth."""

import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from app.errors import CollectionNotFound
from app.gallery.index_check import CopyCheck
from app.locks import made_by
from tests.gallery.model.host import Host, HostProcess, RemoteHost
from tests.gallery.model.operations import CHANGES, NEUTRAL, Operation, Planner
from tests.gallery.model.truth import Gone, Truth
from tests.locks import Order, Pause, WatchedLock

HOSTS = ("one", "two")
# What changes something comes more often, enrollments most: shards need rows.
KINDS = st.sampled_from(["enrol_many", "enrol_many", *CHANGES, *NEUTRAL])
PAIRS = st.tuples(st.sampled_from(HOSTS), st.sampled_from(HOSTS))
SEEDS = st.integers(0, 2**20)


class GalleryMachine(RuleBasedStateMachine):
    """After every step searches equal brute force over the truth, each index and its snapshot hold
    the database's rows, and no byte pattern of a deleted vector is in a file or in an array.

    Where two galleries are open, the one that did not delete follows with its next maintenance;
    until then its arrays, and files that it owns, may have the pattern. Where one is, there is no
    delay.
    """

    encrypted: ClassVar[bool] = False
    migrated: ClassVar[Path]  # an empty database
    process: ClassVar[HostProcess | None] = None  # of the second gallery
    steps: ClassVar[Counter[str]] = Counter()
    interleavings: ClassVar[Counter[tuple[str, str, str]]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._pause = Pause()
        self._order = Order()
        self._stack.enter_context(made_by(self._watched))
        self._folder = Path(tempfile.mkdtemp(dir=self.migrated.parent))
        self._stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self._database = self._folder / "likeness.db"
        shutil.copy(self.migrated, self._database)
        self._truth = Truth()
        self._planned = 0
        self._open: dict[str, Any] = {}
        self._sole: str | None = None  # the one open gallery, once it surely owns the snapshots
        self._start("one")

    # --- steps -------------------------------------------------------------------------------

    @rule(kind=KINDS, who=st.sampled_from(HOSTS), seed=SEEDS)
    def one(self, kind: str, who: str, seed: int) -> None:
        """One operation alone."""
        operation = self._plan(kind, who, seed)
        if operation is not None:
            self.steps[kind] += 1
            self._settle(operation, operation.run())
            self._check(seed)

    @rule(first=KINDS, second=KINDS, hosts=PAIRS, seed=SEEDS, point=st.integers(1, 30))
    def two(self, first: str, second: str, hosts: tuple[str, str], seed: int, point: int) -> None:
        """Two operations at once."""
        self._at_once(first, second, hosts, seed, point)

    @rule(second=KINDS, hosts=PAIRS, seed=SEEDS, point=st.integers(1, 100))
    def maintenance_and(self, second: str, hosts: tuple[str, str], seed: int, point: int) -> None:
        """An operation beside a round of maintenance."""
        self._at_once("run_maintenance", second, hosts, seed, point)

    @rule(second=KINDS, hosts=PAIRS, seed=SEEDS, point=st.integers(1, 50))
    def save_and(self, second: str, hosts: tuple[str, str], seed: int, point: int) -> None:
        """An operation while snapshots are written."""
        self._at_once("save", second, hosts, seed, point)

    @rule(second=KINDS, hosts=PAIRS, seed=SEEDS, point=st.integers(1, 25))
    def search_and(self, second: str, hosts: tuple[str, str], seed: int, point: int) -> None:
        """An operation beside a search."""
        self._at_once("search", second, hosts, seed, point)

    @rule(
        second=st.sampled_from(["enrol_many", "move_face", "merge"]),
        third=st.sampled_from(["delete_person", "delete_face", "merge"]),
        hosts=PAIRS, seed=SEEDS, point=st.integers(1, 16),
    )  # fmt: skip
    def encoding_and(
        self, second: str, third: str, hosts: tuple[str, str], seed: int, point: int
    ) -> None:
        """Rows come and go while maintenance rewrites those that there are."""
        for again in range(2):
            filling = self._plan("enrol_many", hosts[0], seed + again)
            assert filling is not None
            self._settle(filling, filling.run())
        self._at_once("run_maintenance", second, hosts, seed, point, third, lock="index.writing")

    @rule(first=st.sampled_from(["save", "run_maintenance"]), seed=SEEDS, point=st.integers(1, 40))
    def dropping_and(self, first: str, seed: int, point: int) -> None:
        """A collection goes while its snapshot is written."""
        for kind in ("create_collection", "enrol_many", "enrol_many", "search"):
            if (filling := self._plan(kind, "one", seed)) is not None:
                self._settle(filling, filling.run())
        self._at_once(
            first, "delete_collection", ("one", "one"), seed, point, lock="snapshot.files"
        )

    def _at_once(
        self,
        first: str,
        second: str,
        hosts: tuple[str, str],
        seed: int,
        point: int,
        third: str | None = None,
        lock: str | None = None,
    ) -> None:
        """The first is interrupted where it takes or releases a lock, and the second runs, and the
        third after that."""
        who, whom = hosts
        outer, inner = self._plan(first, who, seed), self._plan(second, whom, seed + 1)
        if outer is None or inner is None or (outer.clashes(inner) and not _ends(outer, inner)):
            return
        self.steps[f"{first} + {second}"] += 1
        after = None if third is None else partial(self._plan, third, whom, seed + 2)
        meanwhile = _Meanwhile(self, inner, after, alone=not outer.changes, seed=seed)
        self._pause.arm(meanwhile, name=lock, at=point)
        outcome = _attempt(outer)
        if self._pause.disarm():
            meanwhile()
        else:
            self.interleavings[(first, self._pause.where, second)] += 1
        for operation, result in sorted(
            [(outer, outcome), (inner, meanwhile.outcome)], key=lambda one: _is_end(one[0])
        ):
            if operation is not inner or not meanwhile.applied:
                self._settle(operation, result)
        if meanwhile.failure is not None:
            raise meanwhile.failure
        self._check(seed)

    @rule(who=st.sampled_from(HOSTS), crash=st.booleans(), seed=SEEDS)
    def stop_or_start(self, who: str, crash: bool, seed: int) -> None:
        """Open a gallery, close it, or leave it as a crash does."""
        self.steps["crash" if crash else "close or open"] += 1
        if who in self._open:
            host = self._open.pop(who)
            if crash:
                host.abandon()
            else:
                host.close()
            self._sole = None
            self._await_again()
            if not self._open:
                self._start(who)
        else:
            self._start(who)
        self._check(seed)

    def teardown(self) -> None:
        for host in self._open.values():
            host.close()
        self._stack.close()
        assert self._order.undocumented() == set()

    # --- inside ------------------------------------------------------------------------------

    def _watched(self, name: str) -> WatchedLock:
        def observe(event: str, name: str) -> None:
            self._order.observe(event, name)
            self._pause.observe(event, name)

        return WatchedLock(name, observe)

    def _start(self, who: str) -> None:
        if who == "two" and self.process is not None:
            self._open[who] = RemoteHost(self.process, self._database, encrypted=self.encrypted)
        else:
            self._open[who] = Host(self._database, encrypted=self.encrypted)
        self._sole = who if len(self._open) == 1 else None
        self._await_again()

    def _await_again(self) -> None:
        """Who owns the snapshots may have changed: who is open now must have a round of
        maintenance."""
        for one in self._truth.gone:
            if one.awaited:
                one.awaited = set(self._open) or {"the next"}

    def _plan(self, kind: str, who: str, seed: int) -> Operation | None:
        if who not in self._open:
            (who,) = self._open
        awaited = set[str]() if self._sole == who else set(self._open)
        self._planned += 1  # no vector is drawn twice
        seeds = (seed, self._planned)
        return Planner(self._open[who], who, self._truth, awaited, seeds).plan(kind)

    def _settle(self, operation: Operation, result: Any) -> None:
        """Change the truth by what an operation answered."""
        if isinstance(result, CollectionNotFound):  # the other operation deleted it
            for pattern in operation.brings:
                self._truth.gone.append(Gone(pattern, set(self._open)))
            return
        if isinstance(result, Exception):
            raise result
        operation.apply(result)
        if operation.kind == "run_maintenance" and len(self._open) == 1:
            (self._sole,) = self._open

    def _check(self, seed: int) -> None:
        """Compare everything with the truth."""
        generator = np.random.default_rng(seed)
        for name, host in self._open.items():
            if len(self._open) == 1 or generator.random() < 0.7:
                self.check_search(host, generator)
                self._check_indexes(name, host)
        self.check_bytes()

    def check_search(self, host: Any, generator: np.random.Generator) -> None:
        """Searches answer as brute force does."""
        for collection in self._truth.collections:
            probes = self._truth.probes(collection, generator)
            for probe, row in zip(probes, host.search(collection, probes, 3), strict=True):
                expected = self._truth.nearest(collection, probe, 3)
                assert [person for person, _ in row] == [person for person, _ in expected]
                assert np.allclose([s for _, s in row], [s for _, s in expected], atol=1e-5)

    def _check_indexes(self, name: str, host: Any) -> None:
        """The index holds the database's rows. Everything is erased if everybody has followed."""
        followed = not any(one.awaited for one in self._truth.gone)
        for check in host.check_index():
            assert replace(check.index, unerased=0) == CopyCheck(), (name, check)
            assert not check.miscounted, (name, check)
            assert check.index_matches or not followed, (name, check)

    def check_bytes(self) -> None:
        """No byte pattern of a deleted vector is where it may not be."""
        for name, host in list(self._open.items()):
            # An array may be a file's pages, which its owner erases.
            gone = [o for o in self._truth.gone if name not in o.awaited and o.in_no_file]
            patterns = [one.pattern for one in gone if one.pattern]
            assert host.holding(patterns) == [], f"in an array of {name}"
        if all(one.in_no_file for one in self._truth.gone):
            kept = {path.parent for path in self._folder.glob("index/*/*/rows-*")}
            assert len(kept) <= len(self._truth.collections), "a deleted collection has a snapshot"
        patterns = [one.pattern for one in self._truth.gone if one.pattern and one.in_no_file]
        for path in sorted(self._folder.rglob("*")):
            if path.is_file() and not path.name.startswith("likeness.db"):
                content = _content(path)
                assert not any(pattern in content for pattern in patterns), path
        if all(host.erased() for host in list(self._open.values())):
            content = _read_apart(sorted(self._folder.glob("likeness.db*")))
            assert not any(pattern in content for pattern in patterns), "in the database"


class _Meanwhile:
    """The operation that runs while another is interrupted, and what is checked then."""

    def __init__(
        self,
        machine: GalleryMachine,
        operation: Operation,
        after: Callable[[], Operation | None] | None,
        *,
        alone: bool,
        seed: int,
    ) -> None:
        """`alone`: it is the only one that changes the truth, and then `after` gives one more."""
        self._machine, self._operation, self._after = machine, operation, after
        self._alone, self._seed = alone, seed
        self.outcome: Any = None
        self.applied = False
        self.failure: BaseException | None = None

    def __call__(self) -> None:
        self.outcome = _attempt(self._operation)
        if not self._alone or isinstance(self.outcome, Exception):
            return
        try:
            self._machine._settle(self._operation, self.outcome)
            self.applied = True
            if self._after is not None and (another := self._after()) is not None:
                self._machine._settle(another, another.run())
            # What was acknowledged is in force, whatever the other has not finished.
            self._machine.check_bytes()
            for host in list(self._machine._open.values()):
                if isinstance(host, Host):
                    self._machine.check_search(host, np.random.default_rng(self._seed))
        except BaseException as error:  # noqa: BLE001 (raised where the test runs)
            self.failure = error


def _attempt(operation: Operation) -> Any:
    """What an operation answers, or the exception that it raised."""
    try:
        return operation.run()
    except Exception as error:  # noqa: BLE001 (the machine looks at it)
        return error


def _is_end(operation: Operation) -> bool:
    return operation.kind == "delete_collection"


def _ends(outer: Operation, inner: Operation) -> bool:
    """Whether one is the deletion of the collection in which the other does something."""
    kinds = [outer.kind, inner.kind]
    return kinds.count("delete_collection") == 1 and "create_collection" not in kinds


def _content(path: Path) -> bytes:
    """What a file holds; nothing if it is gone."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _read_apart(paths: list[Path]) -> bytes:
    """What the files of a database hold. A process that closes one loses SQLite's locks on it, and
    another process would remove the log that a gallery here still writes: so a process of its own
    reads them."""
    return subprocess.run(["cat", *paths], capture_output=True, check=False).stdout
