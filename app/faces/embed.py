"""Embedding: aligned crops -> L2-normalised float32 vectors."""

import numpy as np

from app.errors import PackError
from app.faces.images import blank_crops, first_answer, run_on_crops, with_mirror_images
from app.inference.pack_spec import RecogniserSpec
from app.inference.session import Network
from app.types import FloatArray, Image, PixelScale

BATCH_SIZE = 32
_TINY = np.finfo(np.float32).tiny


class Recogniser:
    """The network that turns aligned faces into points of one embedding space."""

    def __init__(self, model: Network, spec: RecogniserSpec) -> None:
        """Raises PackError when the network's output is not what the pack announces."""
        self._model = model
        self._spec = spec
        self._scale = PixelScale(spec.mean, spec.std, rgb=spec.colour == "rgb")
        with first_answer(model, spec.input_size, "one vector", "recogniser"):
            crops = blank_crops(model, spec.input_size)
            vectors = self._raw(crops)
            if vectors.ndim != 2 or len(vectors) != len(crops):
                raise ValueError(f"the answer to {len(crops)} has the shape {vectors.shape}")
        dimension = vectors.shape[1]
        if dimension != spec.dimension:
            raise PackError(
                f"{model.path} answers {dimension} numbers per face, the pack announces "
                f"{spec.dimension}; correct recogniser.dimension in pack.toml."
            )

    @property
    def input_size(self) -> int:
        """Side of the square crop it takes, in pixels."""
        return self._spec.input_size

    @property
    def dimension(self) -> int:
        """Length of its embeddings."""
        return self._spec.dimension

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of what the network runs on."""
        return self._model.provider

    def embed(self, crops: Image) -> tuple[FloatArray, FloatArray]:
        """Embed (n, size, size, 3) BGR crops.

        Returns the (n, d) unit vectors and the (n,) lengths they had: faces the network is sure
        of come out long, blurred ones short (Meng et al., "MagFace", CVPR 2021). Where the pack
        says `mirror`, both are of the mean of a crop's and its mirror image's vectors.
        """
        if not self._spec.mirror:
            return normalise(self._answers(crops))
        answers = self._answers(with_mirror_images(crops))
        return normalise((answers[: len(crops)] + answers[len(crops) :]) * np.float32(0.5))

    def lengths(self, crops: Image) -> FloatArray:
        """The (n,) lengths of the vectors of (n, size, size, 3) crops, never of mirror images."""
        return normalise(self._answers(crops))[1]

    def _answers(self, crops: Image) -> FloatArray:
        """The network's (n, d) answers."""
        return self._raw(crops) if len(crops) else np.empty((0, self._spec.dimension), np.float32)

    def _raw(self, crops: Image) -> FloatArray:
        return run_on_crops(self._model, crops, self._scale, BATCH_SIZE)


def normalise(vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Scale (n, d) vectors to length 1; also their (n,) lengths. A zero vector stays zero."""
    norms = np.sqrt((vectors * vectors).sum(axis=1))
    unit = vectors / np.maximum(norms, _TINY)[:, np.newaxis]
    return np.asarray(unit, np.float32), np.asarray(norms, np.float32)
