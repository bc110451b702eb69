"""A network that rates an aligned face: how well it will be recognised."""

import numpy as np

from app.errors import PackError
from app.faces.blob import to_blob
from app.inference.pack_spec import QualitySpec
from app.inference.session import Network
from app.types import FloatArray, Image


class QualityNetwork:
    """From an aligned face to one number; its scale is the network's own."""

    def __init__(self, model: Network, spec: QualitySpec, crop_size: int) -> None:
        """Raises PackError when the network does not take crops of `crop_size` pixels or answers
        more than one number a face."""
        self._model = model
        self._spec = spec
        if spec.input_size != crop_size:
            raise PackError(
                f"The quality network takes faces of {spec.input_size} pixels, the recogniser "
                f"{crop_size}; both see the same crops. Correct quality in pack.toml."
            )
        try:
            values = self.scores(np.zeros((1, crop_size, crop_size, 3), dtype=np.uint8))
        except Exception as error:  # ONNX Runtime raises its own types
            raise PackError(
                f"{model.path} does not take one {crop_size} x {crop_size} face and answer one "
                f"number: {error}. Correct quality in pack.toml."
            ) from error
        if values.shape != (1,):
            raise PackError(f"{model.path} answers {values.size} numbers a face, not one.")

    def scores(self, crops: Image) -> FloatArray:
        """(n,) scores of (n, size, size, 3) BGR crops."""
        spec = self._spec
        answers = [
            self._model.run(
                to_blob(crop[np.newaxis], spec.mean, spec.std, rgb=spec.colour == "rgb")
            )
            for crop in crops
        ]
        if not answers:
            return np.empty(0, np.float32)
        return np.concatenate([np.asarray(answer[0]).reshape(-1) for answer in answers])
