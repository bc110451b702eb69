"""What is outside the faces that a calibration was measured on.

One degraded face against a good one is missed, not confused. Two that are degraded in the same way
are confused: their comparison decides nothing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from app.types import FloatArray, Quality

# Of a calibration's own faces so many are beyond a limit; of their comparisons far fewer have both
# faces beyond it.
DEGRADED_SHARE = 0.01
BLURRED_SHARE = 0.005
MIN_BRIGHTNESS = 0.05


class Limits(BaseModel):
    """How degraded, how little sharp and how dark one of two compared faces may be; None: any."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_degradation: float | None = Field(None, ge=-1, le=1)
    min_sharpness: float | None = Field(None, ge=0)
    min_brightness: float | None = Field(None, ge=0, le=1)

    @classmethod
    def fit(
        cls, degradation: FloatArray | None, sharpness: Sequence[float] | NDArray[np.floating]
    ) -> "Limits":
        """From the degradation and the sharpness of a calibration's faces, (n,) each."""
        most = None if degradation is None else np.quantile(degradation, 1 - DEGRADED_SHARE)
        return cls(
            max_degradation=None if most is None else round(float(most), 4),
            min_sharpness=round(float(np.quantile(sharpness, BLURRED_SHARE)), 2),
            min_brightness=MIN_BRIGHTNESS,
        )

    def beyond(self, quality: Quality | None, degradation: float | None) -> tuple[str, ...]:
        """The limits (stable codes) that a face is beyond; what is not known is within."""
        found = {
            "degraded": _exceeds(degradation, self.max_degradation),
            "blurred": quality is not None and _exceeds(self.min_sharpness, quality.sharpness),
            "too_dark": quality is not None and _exceeds(self.min_brightness, quality.brightness),
        }
        return tuple(code for code, beyond in found.items() if beyond)


def _exceeds(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


NO_LIMITS = Limits()
