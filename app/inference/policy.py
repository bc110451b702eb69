"""How work is scheduled, by the provider that the networks run on: frozen data, decided here."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.inference.cpu_engine import OPENVINO_BF16, OPENVINO_FP32
from app.inference.cuda import CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER


@dataclass(frozen=True, slots=True)
class SchedulePolicy:
    """`photos_a_core` photos are under way for each core, a thread each.

    Where `batch_sizes` are given, `owners` threads run each network with the images of all photos
    that have come, in sessions of these sizes; where there are none, the photo's own thread runs
    the network. `whole_canvas`: photos of every shape go into the same batch. After every
    `faces_a_turn` embedded faces of a photo, other photos have their turn.
    """

    photos_a_core: int
    batch_sizes: tuple[int, ...]
    owners: int
    whole_canvas: bool
    faces_a_turn: int


# A batch brings a CPU nothing, and a square canvas costs it the padding.
CPU_POLICY = SchedulePolicy(
    photos_a_core=1, batch_sizes=(), owners=0, whole_canvas=False, faces_a_turn=4
)
# Two owners, so that one copies while the other computes. Of photos so many that both find work.
CUDA_POLICY = SchedulePolicy(
    photos_a_core=4, batch_sizes=(1, 8, 32), owners=2, whole_canvas=True, faces_a_turn=32
)
POLICIES: Mapping[str, SchedulePolicy] = {
    CPU_PROVIDER: CPU_POLICY,
    OPENVINO_FP32: CPU_POLICY,
    OPENVINO_BF16: CPU_POLICY,
    CUDA_PROVIDER: CUDA_POLICY,
    TENSORRT_PROVIDER: CUDA_POLICY,
}
