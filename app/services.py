"""The running parts of the service, built once from settings and closed once."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from app.access.keys import audit_key, read_pepper
from app.access.refused import CallLog, RefusedCalls
from app.access.registry import AccessRegistry
from app.access.store import AccessKeyStore, UsageStore
from app.decision.calibrations import Calibrations, pack_calibration, pack_orientation
from app.decision.gates import Measurable
from app.disk import OneProcessLock
from app.encryption.ring import KeyRing
from app.errors import LikenessError, Overloaded
from app.faces.loading import build_pipeline
from app.faces.pipeline import FacePipeline
from app.gallery.gallery import Gallery
from app.gallery.maintenance import MaintenanceThread, Pruning
from app.gallery.retention import MatchTimes
from app.imaging import ImageLimits
from app.index.comparator import COSINE
from app.index.device_rows import CudaDevice, DeviceGalleries
from app.index.engine import SearchEngine
from app.index.factory import IndexFactory
from app.index.port import PRECISION
from app.inference.cpu_engine import CpuOptions
from app.inference.cuda import CudaOptions
from app.inference.machine import usable_cores, usable_memory
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack, packs_by_space
from app.inference.remote.client import NetworkClient
from app.inference.scheduler import Scheduler
from app.locks import Lock, new_lock
from app.processes.shared_records import SharedRecords
from app.processes.starting import START_S, process_count
from app.settings import Settings
from app.store.backends import await_database, create_engine
from app.store.database import Database
from app.store.schema import migrate
from app.store.store import Store
from app.telemetry.logs import log
from app.telemetry.metrics import BatchSizes, Metrics, OpenIndexCounts, SearchCosts

Networks = tuple[ModelPack, FacePipeline]


@dataclass(frozen=True, slots=True)
class Services:
    """The running parts of the service."""

    settings: Settings
    pack: ModelPack
    pipeline: FacePipeline
    gallery: Gallery
    scheduler: Scheduler
    metrics: Metrics
    calibrations: Calibrations
    maintenance: MaintenanceThread
    access_keys: AccessKeyStore
    access: AccessRegistry
    usage: UsageStore
    refused: RefusedCalls
    matches: MatchTimes
    # One collection at a time is examined or calibrated: it takes seconds of a core.
    examination: Lock
    records: SharedRecords | None = None  # where several processes serve

    @property
    def measurable(self) -> Measurable:
        """What gates can ask of a face here."""
        return Measurable(
            math.sqrt(self.settings.max_image_pixels),
            self.pipeline.has_liveness,
            self.pack.quality is not None,
        )

    @contextmanager
    def examining(self, retry_after_s: int) -> Iterator[None]:
        """Hold `examination` while a collection is examined or calibrated. Raises Overloaded if it
        is held already."""
        if not self.examination.acquire(blocking=False):
            raise Overloaded(
                "A collection is being examined or calibrated, and only one is at a time. "
                "Try again later.",
                {"retry_after": retry_after_s},
            )
        try:
            yield
        finally:
            self.examination.release()

    def close(self) -> None:
        """End the threads, keep what the next start can use, close the database."""
        self.maintenance.stop()
        # What its last round did not store; if the database is away, it is lost.
        for store in (self.refused.flush, self.matches.store, self.access.store_uses):
            with suppress(LikenessError):
                store()
        self.access.close()
        self.scheduler.close()
        self.pipeline.close()
        self.gallery.close()


def load_networks(settings: Settings, remote: NetworkClient | None = None) -> Networks:
    """The pack that the settings name and its networks on their device, or those of the `remote`
    process, which is waited for; no database is needed.

    Raises PackError or DeviceError, and WorkerDied where the remote process does not come.
    """
    if remote is not None:
        remote.connect(START_S)
    pack = load_pack(settings.pack, settings.installed_packs)
    limits = ImageLimits(
        settings.max_image_bytes,
        settings.max_image_pixels,
        settings.max_image_side,
        settings.max_decode_bytes,
    )
    orientation = pack_orientation(pack, PRECISION)
    options = cuda_options(settings)
    made = build_pipeline(
        pack,
        settings.device,
        limits,
        options,
        orientation,
        remote=remote,
        cpu=cpu_options(settings, options.engines),
    )
    return pack, made


def cuda_options(settings: Settings) -> CudaOptions:
    """How networks run on a GPU."""
    folder = settings.engine_cache or settings.data_dir / "engines"
    return CudaOptions(settings.cuda_graphs, settings.tensorrt, folder)


def cpu_options(settings: Settings, engines: Path) -> CpuOptions:
    """How networks run on a CPU; the compiled ones are kept below `engines`."""
    copies, folder = _workers(settings), engines / "openvino"
    return CpuOptions(settings.cpu_engine, settings.cpu_precision, copies, folder)


def build_services(
    settings: Settings,
    database_wait_s: float = 0.0,
    records: SharedRecords | None = None,
    networks: Callable[[], Networks] | None = None,
) -> Services:
    """Load the pack, open and migrate the database, start the threads. Waits at most
    `database_wait_s` seconds for a database server that is not running yet. `records` are shared
    with the other processes of the service. `networks` gives those that are being loaded already.

    Raises subclasses of StartupError with a message for the operator.
    """
    pack, pipeline = load_networks(settings) if networks is None else networks()
    ring = KeyRing.from_settings(settings)
    store = _open_store(settings, ring, database_wait_s)
    pepper = read_pepper(settings)
    # Apart: its small writes say nothing about whether the next enrollment would be stored.
    access_database = Database(store.database.engine, audit_key=audit_key(settings))
    access_keys = AccessKeyStore(access_database, pepper)
    gallery, calibrations = _open_gallery(settings, pack, store, ring)
    metrics = _metrics(gallery, pipeline)
    matches = MatchTimes(store.retention)
    maintenance = MaintenanceThread(gallery, before_indexes=[matches.store])
    metrics.observe(
        "likeness_upkeep_failing_seconds",
        "0 while maintenance of the gallery succeeds; otherwise seconds since it began to fail.",
        maintenance.failing_s,
    )
    access = AccessRegistry(access_keys, pepper)
    maintenance.add_task(Pruning(store.changes, store.idempotency).round)
    maintenance.add_task(store.collections.removal.round)
    maintenance.add_task(access.store_uses)
    refused = RefusedCalls(CallLog(access_database))
    maintenance.add_task(refused.round)
    maintenance.add_task(_from_second_round(import_scipy))
    return Services(
        settings,
        pack,
        pipeline,
        gallery,
        _scheduler(settings, pipeline),
        metrics,
        calibrations,
        maintenance,
        access_keys,
        access,
        UsageStore(access_database),
        refused,
        matches,
        OneProcessLock(new_lock("services.examination"), settings.data_dir / "examining"),
        records,
    )


def _from_second_round(task: Callable[[], None]) -> Callable[[], None]:
    """The task without its first call, which would compete with the end of the start."""
    rounds = count()
    return lambda: task() if next(rounds) else None


def import_scipy() -> None:
    """Import what requests need of SciPy: it takes 0.3 s, so it is not part of the start. Repeated,
    it does nothing."""
    import scipy.optimize  # noqa: PLC0415
    import scipy.special  # noqa: F401, PLC0415


def _workers(settings: Settings) -> int:
    return settings.workers or usable_cores()


def _open_store(settings: Settings, ring: KeyRing | None, wait_s: float) -> Store:
    """The database with this version's tables, and with keys that open what is stored."""
    engine = create_engine(settings.resolved_database_url)
    await_database(engine, wait_s)
    migrate(engine)
    store = Store(engine, ring=ring, audit_key=audit_key(settings))
    store.encryption.check_keys()
    store.audit.begin_log()
    return store


def _open_gallery(
    settings: Settings, pack: ModelPack, store: Store, ring: KeyRing | None
) -> tuple[Gallery, Calibrations]:
    """The gallery of the pack's embedding space, and what decides in it."""
    search_engine = _search_engine(settings, ring)
    dimension = pack.recogniser.dimension
    calibration = pack_calibration(
        pack.folder, pack.embedding_space, search_engine.precision, dimension
    )
    gallery = Gallery(
        store,
        search_engine,
        pack.embedding_space,
        dimension,
        COSINE if calibration is None else calibration.comparator,
        packs=packs_by_space(settings.installed_packs),
    )
    calibrations = Calibrations(
        store.calibrations,
        calibration,
        pack.decision.threshold,
        embedding_space=pack.embedding_space,
        precision=gallery.precision,
    )
    return gallery, calibrations


def _search_engine(settings: Settings, ring: KeyRing | None) -> SearchEngine:
    """The engine that the settings ask for. Raises DeviceError."""
    gpu: DeviceGalleries | None = None
    if settings.index_device == "cuda":
        gpu = DeviceGalleries(CudaDevice(processes=process_count(settings)))
        log(logging.INFO, "galleries are searched on the GPU", max_bytes=gpu.device.max_bytes)
    memory = settings.max_index_bytes or usable_memory() // 2
    folder = settings.data_dir / "index"
    return IndexFactory(_workers(settings), folder, ring, gpu=gpu, max_bytes=memory)


def _scheduler(settings: Settings, pipeline: FacePipeline) -> Scheduler:
    return Scheduler(
        _workers(settings) * pipeline.policy.photos_a_core,
        settings.max_pending,
        settings.max_pending_bytes,
        settings.max_pending * settings.max_images,
        settings.max_decode_bytes,
    )


def _metrics(gallery: Gallery, pipeline: FacePipeline) -> Metrics:
    metrics = Metrics()
    metrics.runs_on(pipeline.provider)
    metrics.registry.register(SearchCosts(gallery.costs))
    metrics.registry.register(OpenIndexCounts(gallery.open_indexes))
    metrics.registry.register(BatchSizes(lambda: pipeline.batches))
    metrics.observe(
        "likeness_erasure_pending_seconds",
        "For how long deleted rows, or their bytes, have been left in the database or in the "
        "index's snapshots; 0 for none.",
        gallery.erasure_pending_s,
    )
    return metrics
