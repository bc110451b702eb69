"""The part of a calibration that says when a photo is also analysed turned."""

import logging
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.faces.orientation import OrientationLimits
from app.inference.pack_spec import ModelPack, Sha256
from app.telemetry.logs import log


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
