"""A pack's detector in 8-bit integers, and whether this CPU runs it as it should."""

import logging
from pathlib import Path

from app.errors import DeviceError, PackError
from app.faces.agreement import same_faces
from app.faces.detect import Detector
from app.faces.images import drawn_face
from app.inference.cpu_engine import Cpu
from app.inference.pack_spec import ModelPack
from app.telemetry.logs import log

DRAWN_SIDE = 320
# How far the landmarks of the drawn face may be apart, as a share of its box (default pack: 0.01).
FARTHEST_IN_DRAWING = 0.05
SLOW = (
    "this CPU has no instructions for 8-bit integers (VNNI, or ARM's dotprod): "
    "LIKENESS_CPU_PRECISION=int8 may be slower than fp32 here, and less exact"
)


def integer_file(pack: ModelPack) -> Path:
    """The file of the detector in 8-bit integers. Raises PackError where the pack has none."""
    if pack.detector.int8 is not None:
        return pack.path(pack.detector.int8)
    raise PackError(
        f"LIKENESS_CPU_PRECISION=int8: the pack {pack.name} has no detector in 8-bit integers. Set "
        "it to auto or fp32, or make a pack that has one: likeness models pack FOLDER --base "
        f"{pack.name} --int8 PHOTOS."
    )


def check_integers(integers: Detector, float32: Detector) -> None:
    """Compare both forms of a detector on a drawn face: not every CPU multiplies 8-bit integers
    exactly. A CPU that is slow at it is logged. Raises DeviceError for another answer, and where
    neither form finds the face, so that nothing is compared."""
    if Cpu.of_this_machine().lacks_int8:
        log(logging.WARNING, SLOW)
    image = drawn_face(DRAWN_SIDE, DRAWN_SIDE)
    ours, theirs = integers.look(image), float32.look(image)
    if not len(ours) and not len(theirs):
        raise DeviceError(
            "LIKENESS_CPU_PRECISION=int8 cannot be used: it is not known whether the detector in "
            "integers works on this CPU, because neither it nor the detector in float32 finds the "
            "face in a drawing. Set it to auto or fp32."
        )
    pairs = same_faces(theirs, ours)
    apart = max((pair.distance for pair in pairs), default=0.0)
    if not len(ours) == len(theirs) == len(pairs) or not apart <= FARTHEST_IN_DRAWING:
        raise DeviceError(
            "LIKENESS_CPU_PRECISION=int8 cannot be used: on this CPU the detector in integers "
            f"finds {len(ours)} faces in a drawing of one, the detector in float32 {len(theirs)}, "
            f"with landmarks {apart:.2f} of the face's side apart. Set it to auto or fp32."
        )
