"""The gallery against other ways to search: latency, exactness, memory, restart, acknowledgement.

    python benchmarks/gallery.py search --count 1000000 --pack PACK --photos FOLDER_OF_PEOPLE
    python benchmarks/gallery.py search --count 100000 --dimension 512      # random directions
    python benchmarks/gallery.py service --count 1000000 --dimension 512    # over SQLite

`search` asks Likeness and the flat index the same probes in turn, so that both meet the same noise,
then the others, then all the same batches of 32; "identical" counts probes whose similarities equal
brute force. `service` fills a database and times what a client waits for, a restart from the
snapshot, and the private memory of a process that has restarted.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
from embeddings import (
    Gallery,
    Vectors,
    embed_folder,
    random_directions,
    random_gallery,
    real_gallery,
)
from rich.console import Console
from rich.table import Table

from app.gallery.gallery import Gallery as LikenessGallery
from app.index.certified.index import CertifiedIndex
from app.index.factory import IndexFactory
from app.index.port import Templates
from app.inference.machine import usable_cores
from app.store.backends import create_engine
from app.store.records import NewTemplate, PersonEnrollment
from app.store.schema import migrate
from app.store.store import Store

TOP_K = 6  # five candidates and the next, for the margin of the fifth
BATCH = 32
Search = Callable[[Vectors, int], Vectors]
console = Console(width=150)


@dataclass(slots=True)
class Engine:
    """One way to search: gives similarities (n, k), best first."""

    name: str
    search: Search
    build_s: float
    bytes_each: float | None = None
    single_ms: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["search", "service", "restart"])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512, help="of random directions")
    parser.add_argument("--pack", help="real embeddings of this pack, with --photos")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--probes", type=int, default=200, help="asked of every engine one by one")
    parser.add_argument("--check", type=int, default=0, help="more probes for exactness alone")
    parser.add_argument("--graphs", action="store_true", help="HNSW too: minutes at 100,000")
    parser.add_argument("--cache", type=Path, default=Path("data/evaluation-cache.db"))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    {"search": search, "service": service, "restart": restart}[options.part](options)


# --- search ----------------------------------------------------------------------------------


def search(options: argparse.Namespace) -> None:
    if options.pack:
        vectors, persons = embed_folder(options.photos, options.pack, options.cache)
        gallery = real_gallery(vectors, persons, options.count)
    else:
        gallery = random_gallery(options.dimension, options.count)
    dimension = gallery.templates.shape[1]
    engines = build_engines(gallery.templates, options.graphs)
    for kind, probes in gallery.probes.items():
        for top_k in (1, TOP_K):
            compare(engines, probes, (kind, top_k, dimension), options)
    if options.check:
        check(engines, gallery, options.check)


def build_engines(templates: Vectors, with_graphs: bool) -> list[Engine]:
    count, dimension = templates.shape
    index = CertifiedIndex(dimension, IndexFactory(usable_cores())._threads)

    def fill() -> None:
        for start in range(0, count, index.shape.large):
            part = templates[start : start + index.shape.large]
            keys = np.arange(start, start + len(part), dtype=np.int64)
            index.add(Templates(keys, keys, part))
            while index.maintain():
                pass

    def likeness(probes: Vectors, top_k: int) -> Vectors:
        rows = index.search_persons(probes, top_k)
        return np.array([[hit.similarity for hit in row] for row in rows], np.float32)

    engines = [Engine("Likeness", likeness, timed(fill))]
    flat = faiss.IndexFlatIP(dimension)
    build_s = timed(lambda: flat.add(templates))
    engines += [
        Engine(f"IndexFlatIP, {threads} thread(s)", of_faiss(flat, threads), build_s,
               4.0 * dimension)
        for threads in dict.fromkeys((1, usable_cores()))
    ]  # fmt: skip
    engines.append(Engine("numpy", by_numpy(templates), 0.0, 4.0 * dimension))
    return [*engines, *graphs(templates)] if with_graphs else engines


def of_faiss(index: faiss.Index, threads: int) -> Search:
    def run(probes: Vectors, top_k: int) -> Vectors:
        faiss.omp_set_num_threads(threads)
        return index.search(probes, top_k)[0]

    return run


def by_numpy(templates: Vectors) -> Search:
    def run(probes: Vectors, top_k: int) -> Vectors:
        similarities = probes @ templates.T
        best = np.partition(similarities, -top_k, axis=1)[:, -top_k:]
        return np.sort(best, axis=1)[:, ::-1]

    return run


def graphs(templates: Vectors) -> list[Engine]:
    """Approximate engines, where they are installed (pip install hnswlib usearch)."""
    count, dimension = templates.shape
    hnsw = faiss.IndexHNSWFlat(dimension, 32, faiss.METRIC_INNER_PRODUCT)
    hnsw.hnsw.efSearch = 128
    faiss.omp_set_num_threads(usable_cores())
    found = [
        Engine("HNSW32, ef 128", of_faiss(hnsw, 1), timed(lambda: hnsw.add(templates)),
               4.0 * dimension + 32 * 2 * 4)
    ]  # fmt: skip
    try:
        import hnswlib  # noqa: PLC0415 (may be absent)

        other = hnswlib.Index(space="ip", dim=dimension)
        other.init_index(count, M=32, ef_construction=40)
        build_s = timed(lambda: other.add_items(templates))
        other.set_ef(128)
        found.append(Engine("hnswlib, ef 128", lambda p, k: 1 - other.knn_query(p, k)[1], build_s))
    except ImportError:
        console.print("hnswlib is not installed: left out")
    try:
        from usearch.index import Index  # noqa: PLC0415 (may be absent)

        third = Index(ndim=dimension, metric="ip", dtype="f32", connectivity=32)
        build_s = timed(lambda: third.add(np.arange(count), templates))

        def run(probes: Vectors, top_k: int) -> Vectors:
            return 1 - np.atleast_2d(third.search(probes, top_k).distances)

        found.append(Engine("usearch", run, build_s))
    except ImportError:
        console.print("usearch is not installed: left out")
    return found


def compare(
    engines: list[Engine],
    probes: Vectors,
    what: tuple[str, int, int],
    options: argparse.Namespace,
) -> None:
    kind, top_k, dimension = what
    asked = probes[: options.probes]
    truth = next(e for e in engines if e.name.startswith("IndexFlatIP")).search(asked, top_k)
    same = dict.fromkeys((engine.name for engine in engines), 0)
    for engine in engines:
        engine.single_ms.clear()
        engine.search(asked[:3], top_k)
    # In turn with the one-threaded flat index alone: threads that others leave spinning for a
    # while after their search would cost the next engine a core.
    for group in (engines[:2], *([engine] for engine in engines[2:])):
        for row, probe in enumerate(asked):
            for engine in group:
                start = time.perf_counter()
                found = engine.search(probe[np.newaxis], top_k)
                engine.single_ms.append((time.perf_counter() - start) * 1000)
                same[engine.name] += np.allclose(found[0], truth[row], atol=3e-6)
    batches = {engine.name: batch_ms(engine, asked, top_k) for engine in engines}
    flat = np.median(engines[1].single_ms)
    table = Table(
        "engine", "p50 ms", "p99 ms", "flat, 1 thread, is x", "of 32: ms each", "identical",
        "build s", "bytes each",
        title=f"{options.count:,} x {dimension}, {options.pack or 'random directions'}: "
        f"{kind}, top {top_k}",
    )  # fmt: skip
    for engine in engines:
        median = float(np.median(engine.single_ms))
        table.add_row(
            engine.name, f"{median:.2f}", f"{np.percentile(engine.single_ms, 99):.2f}",
            f"{flat / median:.1f}", f"{batches[engine.name]:.2f}",
            f"{same[engine.name]}/{len(asked)}", f"{engine.build_s:.1f}",
            "" if engine.bytes_each is None else f"{engine.bytes_each:.0f}",
        )  # fmt: skip
    console.print(table)


def batch_ms(engine: Engine, probes: Vectors, top_k: int) -> float:
    times = [timed(lambda: engine.search(probes[:BATCH], top_k)) for _ in range(3)]
    return float(np.median(times)) * 1000 / min(BATCH, len(probes))


def check(engines: list[Engine], gallery: Gallery, count: int) -> None:
    """More probes than can be timed, for exactness alone: known ones again, disturbed."""
    generator = np.random.default_rng(5)
    brute = engines[2].search
    for kind, probes in gallery.probes.items():
        wrong = 0
        for start in range(0, count, 250):
            some = probes[generator.integers(0, len(probes), min(250, count - start))]
            some = some + generator.standard_normal(some.shape) * (0.2 / np.sqrt(some.shape[1]))
            some = (some / np.linalg.norm(some, axis=1, keepdims=True)).astype(np.float32)
            found, truth = engines[0].search(some, 5), brute(some, 5)
            wrong += int((np.abs(found - truth) > 3e-6).any(axis=1).sum())
        console.print(f"{count:,} probes, {kind}: {wrong} answers (top 5) differ from brute force")


# --- service ---------------------------------------------------------------------------------


def service(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        gallery = open_gallery(folder, options.dimension)
        fill_s = timed(lambda: fill_database(gallery, options))
        build_s = timed(gallery.prepare)
        save_s = timed(gallery.run_maintenance)
        new = random_directions(200, options.dimension, 77)
        enrolled = [
            timed(lambda i=i, v=v: gallery.enroll_together("default", [person(f"new{i}", [v])]))
            for i, v in enumerate(new)
        ]
        deleted = [timed(lambda i=i: delete(gallery, f"new{i}")) for i in range(len(new))]
        gallery.close()
        table = Table("what", "value", title=f"SQLite, {options.count:,} x {options.dimension}")
        table.add_row("filling the database", f"{fill_s:.1f} s")
        table.add_row("index built from the database", f"{build_s:.1f} s")
        table.add_row("first snapshot", f"{save_s:.1f} s")
        for event, times in (("enroll", enrolled), ("delete person", deleted)):
            values = [f"{np.percentile(times, q) * 1000:.1f}" for q in (50, 99)]
            table.add_row(f"{event} acknowledged, p50 / p99", " / ".join(values) + " ms")
        console.print(table)
        subprocess.run(
            [sys.executable, __file__, "restart", "--folder", str(folder), "--dimension",
             str(options.dimension)], check=True)  # fmt: skip


def open_gallery(folder: Path, dimension: int) -> LikenessGallery:
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    migrate(engine)
    index_factory = IndexFactory(usable_cores(), folder / "index")
    return LikenessGallery(Store(engine), index_factory, "es-benchmark", dimension)


def fill_database(gallery: LikenessGallery, options: argparse.Namespace) -> None:
    """A thousand templates a transaction, which is no way to enroll people but a quick one."""
    for start in range(0, options.count, 1_000):
        size = min(1_000, options.count - start)
        vectors = random_directions(size, options.dimension, start)
        gallery.store.templates.enroll_together("default", [person(f"p{start}", vectors)])


def person(person_id: str, vectors: Sequence[Vectors] | Vectors) -> PersonEnrollment:
    templates = [NewTemplate(vector, f"{person_id}-{i}") for i, vector in enumerate(vectors)]
    return PersonEnrollment(person_id, None, templates)


def delete(gallery: LikenessGallery, person_id: str) -> None:
    gallery.store.persons.delete("default", person_id)
    gallery.follow_deletion("default")


def restart(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    gallery = open_gallery(options.folder, options.dimension)
    gallery.prepare()
    ready_s = time.perf_counter() - start
    probe = random_directions(1, options.dimension, 0)
    first_ms = timed(lambda: gallery.identify("default", probe, 5)) * 1000
    later = [timed(lambda: gallery.identify("default", probe, 5)) * 1000 for _ in range(20)]
    table = Table("after a restart", "value")
    table.add_row("ready", f"{ready_s:.2f} s")
    table.add_row("first identify, then p50", f"{first_ms:.1f}, {np.median(later):.1f} ms")
    for what, kib in memory().items():
        table.add_row(f"memory: {what}", f"{kib / 1024:.0f} MiB")
    console.print(table)
    gallery.close()


def memory() -> dict[str, int]:
    """Of this process, in KiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {
        "private": values["Private_Dirty"],
        "mapped from files": values["Private_Clean"] + values["Shared_Clean"],
    }


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
