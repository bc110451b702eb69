"""The running parts of the service, built once from settings and closed once."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from app.access.pepper import read_pepper
from app.access.registry import AccessRegistry
from app.access.store import AccessKeyStore
from app.access.usage import UsageStore
from app.decision.calibration import pack_calibration, pack_orientation
from app.decision.calibrations import Calibrations
from app.decision.gates import check_quality
from app.decision.policy import FaceSelection, select_box
from app.decision.thresholds import CollectionPolicy
from app.encryption.ring import KeyRing
from app.faces.loading import build_pipeline
from app.faces.pipeline import FacePipeline, run_to_completion
from app.gallery.gallery import Gallery
from app.gallery.maintenance import MaintenanceThread
from app.gallery.pruning import Pruning
from app.imaging import ImageLimits, encode_crop
from app.index.comparator import COSINE
from app.index.factory import IndexFactory
from app.index.gpu import GpuShards, cuda_flat
from app.index.port import PRECISION, SearchEngine
from app.inference.cores import usable_cores
from app.inference.cuda import CudaOptions
from app.inference.memory import usable_memory
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.inference.scheduler import Scheduler
from app.locks import Lock, new_lock
from app.settings import Settings
from app.store.backends import create_engine
from app.store.database import Database
from app.store.records import NewTemplate
from app.store.schema import migrate
from app.store.store import Store
from app.store.waiting import await_database
from app.telemetry.metrics import BatchSizes, Metrics, OpenIndexCounts, SearchCosts
from app.types import AnalysedImage, CooperativeTask, Face, FloatArray


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
    # One collection at a time calibrates in a process: it takes seconds of a core.
    calibrating: Lock = field(default_factory=lambda: new_lock("services.calibrating"))

    def template_from_photo(
        self, data: bytes, selection: FaceSelection, policy: CollectionPolicy
    ) -> tuple[AnalysedImage, NewTemplate]:
        """Analyse a photo and make a template of its one face.

        Raises the ImageError and FaceError families.
        """
        return run_to_completion(self.template_steps(data, selection, policy))

    def template_steps(
        self, data: bytes, selection: FaceSelection, policy: CollectionPolicy
    ) -> CooperativeTask[tuple[AnalysedImage, NewTemplate]]:
        """`template_from_photo` in steps."""
        gate = policy.enroll_gate
        image = yield from self.pipeline.steps(
            data,
            max_faces=self.settings.max_faces,
            liveness=gate.min_liveness is not None,
            crops=policy.keep_crops,
            selector=partial(select_box, selection=selection),
        )
        (face,) = image.faces
        check_quality(face, gate)
        return image, template_of(face, data)

    def template_from_embedding(self, values: Sequence[float] | FloatArray) -> NewTemplate:
        """A template of an embedding made elsewhere in the same space. Raises InvalidEmbedding."""
        vector = self.gallery.check_embedding(values)
        return NewTemplate(vector, hashlib.sha256(vector.tobytes()).hexdigest())

    def close(self) -> None:
        """End the threads, keep what the next start can use, close the database."""
        self.maintenance.stop()
        self.access.close()
        self.scheduler.close()
        self.pipeline.close()
        self.gallery.close()


def template_of(face: Face, data: bytes) -> NewTemplate:
    """The template of one embedded face of an encoded photo."""
    embedding: FloatArray | None = face.embedding
    assert embedding is not None, "the pipeline was asked to embed"
    crop = None if face.crop is None else encode_crop(face.crop)
    return NewTemplate(embedding, content_digest(data), asdict(face.quality), crop)


def content_digest(data: bytes) -> str:
    """What identifies a photo, so that it is stored once for a person."""
    return hashlib.sha256(data).hexdigest()


def load_networks(settings: Settings) -> tuple[ModelPack, FacePipeline]:
    """The pack that the settings name and its networks on their device; no database is needed.

    Raises PackError or DeviceError.
    """
    pack = load_pack(settings.pack, settings.installed_packs)
    limits = ImageLimits(
        settings.max_image_bytes,
        settings.max_image_pixels,
        settings.max_image_side,
        settings.max_decode_bytes,
    )
    options = CudaOptions(
        settings.cuda_graphs,
        settings.tensorrt,
        settings.engine_cache or settings.data_dir / "engines",
    )
    orientation = pack_orientation(pack, PRECISION)
    return pack, build_pipeline(pack, settings.device, limits, options, orientation)


def build_services(settings: Settings, database_wait_s: float = 0.0) -> Services:
    """Load the pack, open and migrate the database, start the threads. Waits at most
    `database_wait_s` seconds for a database server that is not running yet.

    Raises subclasses of StartupError with a message for the operator.
    """
    pack, pipeline = load_networks(settings)
    ring = KeyRing.from_settings(settings)
    engine = create_engine(settings.resolved_database_url)
    await_database(engine, database_wait_s)
    migrate(engine)
    workers = settings.workers or usable_cores()
    store = Store(engine, ring=ring)
    store.encryption.check_keys()
    pepper = read_pepper(settings)
    # Apart: its small writes say nothing about whether the next enrollment would be stored.
    access_database = Database(engine)
    access_keys = AccessKeyStore(access_database, pepper)
    search_engine = _search_engine(settings, workers, ring)
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
    )
    calibrations = Calibrations(
        store.calibrations,
        calibration,
        pack.decision.threshold,
        embedding_space=pack.embedding_space,
        precision=gallery.precision,
    )
    scheduler = Scheduler(
        workers * pipeline.policy.photos_a_core,
        settings.max_pending,
        settings.max_pending_bytes,
        settings.max_pending * settings.max_images,
        settings.max_decode_bytes,
    )
    metrics = Metrics()
    metrics.registry.register(SearchCosts(gallery.costs))
    metrics.registry.register(OpenIndexCounts(gallery.open_indexes))
    metrics.registry.register(BatchSizes(lambda: pipeline.batches))
    maintenance = _maintenance(gallery, store, metrics)
    access = AccessRegistry(access_keys, pepper)
    maintenance.add_task(access.store_uses)
    return Services(
        settings,
        pack,
        pipeline,
        gallery,
        scheduler,
        metrics,
        calibrations,
        maintenance,
        access_keys,
        access,
        UsageStore(access_database),
    )


def _search_engine(settings: Settings, threads: int, ring: KeyRing | None) -> SearchEngine:
    """The engine that the settings ask for. Raises DeviceError."""
    gpu = GpuShards(cuda_flat()) if settings.index_device == "cuda" else None
    memory = settings.max_index_bytes or usable_memory() // 2
    return IndexFactory(threads, settings.data_dir / "index", ring, gpu=gpu, max_bytes=memory)


def _maintenance(gallery: Gallery, store: Store, metrics: Metrics) -> MaintenanceThread:
    """The maintenance of the gallery and its database, with its metrics."""
    maintenance = MaintenanceThread(gallery)
    maintenance.add_task(Pruning(store.changes).round)
    metrics.observe(
        "likeness_upkeep_failing_seconds",
        "Seconds since maintenance of the gallery last succeeded; 0 if the last round succeeded.",
        maintenance.failing_s,
    )
    metrics.observe(
        "likeness_erasure_pending_seconds",
        "For how long bytes of deleted rows have been left in the database's files; 0 for none.",
        store.database.eraser.pending_s,
    )
    return maintenance
