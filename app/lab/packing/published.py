"""Files that others publish, accepted only with the SHA-256 that is expected; and the packs that
InsightFace publishes: which networks of theirs are used, and their digests."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from app.errors import PackError

# Bytes so far, and in all.
Progress = Callable[[int, int], None]
# Seconds: for each step of the connection, and for the whole file.
STEP_S, WHOLE_S = 30.0, 900.0


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file that others publish: where it is, its size in bytes and its SHA-256."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def fetch(file: PublishedFile, progress: Progress, *, mirror: str | None = None) -> bytes:
    """The content of a file; nothing is written to disk. `mirror` is the address of a folder that
    has it, too. Raises PackError with what to do."""
    url = file.url if mirror is None else f"{mirror.rstrip('/')}/{file.name}"
    try:
        content = _received(url, file.size, progress)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # the last: of a host
        reason = str(error).rstrip(".") or type(error).__name__
        raise PackError(
            f"{url} could not be fetched: {reason}. Nothing was kept. {_without_network(file)}"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise PackError(
            f"{url} is not the published file: its SHA-256 is {found}, expected {file.sha256}. "
            "Nothing was kept. Fetch it from a source that you trust (--url)."
        )
    return content


def _received(url: str, size: int, progress: Progress) -> bytes:
    deadline = time.monotonic() + WHOLE_S
    content = bytearray()
    # As it is sent: what is compressed might unpack to anything.
    headers = {"Accept-Encoding": "identity"}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=STEP_S) as answer:
        if answer.status_code != httpx.codes.OK:
            raise httpx.HTTPError(
                f"the server answered {answer.status_code} {answer.reason_phrase}"
            )
        for piece in answer.iter_raw():
            content += piece
            if len(content) > size:
                raise PackError(
                    f"{url} is not the published file: it has more than {size:,} bytes. Nothing "
                    "was kept."
                )
            if time.monotonic() > deadline:
                raise PackError(
                    f"{url} sent {len(content):,} of {size:,} bytes in {WHOLE_S:.0f} s. Nothing "
                    "was kept. Try again with a faster connection."
                )
            progress(len(content), size)
    return bytes(content)


def _without_network(file: PublishedFile) -> str:
    return (
        f"Without a network: fetch {file.url} on another machine, copy it here, and call likeness "
        f"models install {file.name}."
    )


LICENCE = "InsightFace: non-commercial research use only"
LICENSE_TEXT = (
    "The networks that InsightFace trained and publishes may be used for non-commercial "
    "research only; its code is under the MIT license, its networks are not. For other uses ask "
    "InsightFace for a license: https://github.com/deepinsight/insightface#license"
)


@dataclass(frozen=True, slots=True)
class PublishedNetwork:
    """A file of a published archive, by name and SHA-256."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class PublishedRecogniser(PublishedNetwork):
    """A recogniser, what it was trained on, and the threshold to start with."""

    architecture: str
    training_data: str
    threshold: float
    threshold_basis: str


@dataclass(frozen=True, slots=True)
class PublishedPack:
    """One archive; `archive_bytes` is about what it takes to download."""

    name: str
    archive_bytes: int
    detector: PublishedNetwork
    recogniser: PublishedRecogniser

    @property
    def archive(self) -> str:
        return f"{self.name}.zip"


_SCRFD_500M = PublishedNetwork(
    "det_500m.onnx", "5e4447f50245bbd7966bd6c0fa52938c61474a04ec7def48753668a9d8b4ea3a"
)
_SCRFD_2_5G = PublishedNetwork(
    "det_2.5g.onnx", "041f73f47371333d1d17a6fee6c8ab4e6aecabefe398ff32cca4e2d5eaee0af9"
)
_SCRFD_10G = PublishedNetwork(
    "det_10g.onnx", "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91"
)
_UNMEASURED = (
    "Not measured: the threshold of w600k_mbf, which networks trained in the same way come near. "
    "Measure on people like yours: likeness evaluate FOLDER --calibration FILE."
)
_W600K_MBF = PublishedRecogniser(
    file="w600k_mbf.onnx",
    sha256="9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
    architecture="mobilefacenet",
    training_data="WebFace600K",
    threshold=0.30,
    threshold_basis="False match rate 1e-4 over 20 million comparisons of different people among "
    "LFW photos, found by det_500m; there it misses 1.1 % of the mated comparisons.",
)
_W600K_R50 = PublishedRecogniser(
    file="w600k_r50.onnx",
    sha256="4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
    architecture="iresnet50",
    training_data="WebFace600K",
    threshold=0.30,
    threshold_basis=_UNMEASURED,
)
_GLINT_R100 = PublishedRecogniser(
    file="glintr100.onnx",
    sha256="4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
    architecture="iresnet100",
    training_data="Glint360K",
    threshold=0.30,
    threshold_basis=_UNMEASURED,
)
PUBLISHED: Mapping[str, PublishedPack] = {
    pack.name: pack
    for pack in (
        PublishedPack("buffalo_l", 288_621_354, _SCRFD_10G, _W600K_R50),
        PublishedPack("buffalo_m", 276_000_000, _SCRFD_2_5G, _W600K_R50),
        PublishedPack("buffalo_s", 128_000_000, _SCRFD_500M, _W600K_MBF),
        PublishedPack("buffalo_sc", 14_969_382, _SCRFD_500M, _W600K_MBF),
        PublishedPack(
            "antelopev2",
            360_662_982,
            PublishedNetwork("scrfd_10g_bnkps.onnx", _SCRFD_10G.sha256),
            _GLINT_R100,
        ),
    )
}


def description(pack: PublishedPack, dimension: int) -> dict[str, Any]:
    """The tables of its pack.toml."""
    made_of = {"licence": LICENCE, "source": f"{pack.archive} of InsightFace's model zoo"}
    return {
        "schema": 1,
        "name": pack.name,
        "version": "0.7",
        "description": f"InsightFace's {pack.name}: {pack.detector.file}, {pack.recogniser.file}.",
        "detector": {
            "architecture": "scrfd",
            "file": "detector.onnx",
            "input_size": 640,
            "score_threshold": 0.5,
            "iou_threshold": 0.4,
            **made_of,
            "training_data": "WIDER FACE (training split)",
        },
        "recogniser": {
            "architecture": pack.recogniser.architecture,
            "file": "recogniser.onnx",
            "proven_equal_to": pack.recogniser.sha256,
            "input_size": 112,
            "colour": "rgb",
            "mean": 127.5,
            "std": 127.5,
            "dimension": dimension,
            **made_of,
            "training_data": pack.recogniser.training_data,
        },
        "decision": {
            "threshold": pack.recogniser.threshold,
            "threshold_basis": pack.recogniser.threshold_basis,
        },
    }
