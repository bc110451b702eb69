"""Sections of a calibration that limit what it is for: beyond which two faces are not compared, and
when a photo is also analysed turned.

A degraded face compared with a good one causes false non-matches only. Two faces that are degraded
in the same way cause false matches, so nothing is decided by their comparison.
"""

import logging
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from app.faces.orientation import OrientationLimits
from app.inference.pack_spec import ModelPack, Sha256
from app.telemetry.logs import log
from app.types import FloatArray, Quality

# So many of a calibration's own faces are beyond the limit; of their comparisons far fewer have
# both faces beyond it.
DEGRADED_SHARE = 0.01
# Where the false match rate of two such faces exceeds the promised one by far, even by the score.
MIN_SHARPNESS = 15.0
MIN_BRIGHTNESS = 0.05
MIN_FACE_SIZE_PX = 20.0
# The limit that also a search keeps: it follows the gallery's likeness, which covers the others.
DEGRADED = "degraded"


class Limits(BaseModel):
    """How degraded, unsharp, dark and small one of two compared faces may be; None: any."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_degradation: float | None = Field(None, ge=-1, le=1)
    min_sharpness: float | None = Field(None, ge=0)
    min_brightness: float | None = Field(None, ge=0, le=1)
    min_face_size_px: float | None = Field(None, ge=0)

    @classmethod
    def fit(cls, degradation: FloatArray | None) -> "Limits":
        """From the degradation (n,) of a calibration's faces, if there is a direction for it."""
        most = None if degradation is None else np.quantile(degradation, 1 - DEGRADED_SHARE)
        return cls(
            max_degradation=None if most is None else round(float(most), 4),
            min_sharpness=MIN_SHARPNESS,
            min_brightness=MIN_BRIGHTNESS,
            min_face_size_px=MIN_FACE_SIZE_PX,
        )

    def beyond(self, quality: Quality | None, degradation: float | None) -> tuple[str, ...]:
        """The limits (stable codes) that a face is beyond; what is not known is within."""
        found = {
            DEGRADED: _exceeds(degradation, self.max_degradation),
            "blurred": quality is not None and _exceeds(self.min_sharpness, quality.sharpness),
            "too_dark": quality is not None and _exceeds(self.min_brightness, quality.brightness),
            "face_too_small": quality is not None
            and _exceeds(self.min_face_size_px, quality.face_size_px),
        }
        return tuple(code for code, beyond in found.items() if beyond)


def _exceeds(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


NO_LIMITS = Limits()


class Orientation(BaseModel):
    """Limits of one detector's looks, and what they were fitted to.

    `source`: the folder of photos. Of its `photos`, the share `looked_again` would be looked at
    turned. `turned`: how many turned photos were tried, a third each by 90, 180 and 270 degrees;
    the share `righted` of them was set upright.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    detector: Sha256
    score_below: Annotated[float, Field(gt=0, lt=1)]
    roll_above: Annotated[float, Field(gt=0, lt=180)]
    source: str
    photos: Annotated[int, Field(gt=0)]
    looked_again: Annotated[float, Field(ge=0, le=1)]
    turned: Annotated[int, Field(gt=0)]
    righted: Annotated[float, Field(ge=0, le=1)]

    def limits_for(self, pack: ModelPack) -> OrientationLimits | None:
        """The limits for a pack's pipeline; None, with a warning in the log, if they were measured
        with another detector."""
        if self.detector != pack.detector.sha256:
            log(
                logging.WARNING,
                "photos are not turned upright: the calibration's limits are of another detector",
                pack=pack.name,
                detector=pack.detector.sha256,
            )
            return None
        return OrientationLimits(self.score_below, self.roll_above)
