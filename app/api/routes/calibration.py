"""`/v1/collections/{c}/calibrate` and `…/calibration`: error rates of a collection's own faces."""

import secrets
from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from app.api.decisions import calibration_members
from app.api.problems import ANY_WRITE, IN_SPACE, problems
from app.api.responses import AnswerHead
from app.api.routes.collections import Collection
from app.api.schemas.calibration import CalibrationAnswer, NewCalibrationAnswer
from app.decision.collection_calibration import CollectionCalibration, calibrate_collection
from app.errors import NotEnoughData, Overloaded
from app.services import Services

router = APIRouter(prefix="/v1/collections/{collection}", tags=["calibration"])

RETRY_AFTER_S = 5


@router.post(
    "/calibrate",
    response_model=NewCalibrationAnswer,
    responses=problems(IN_SPACE, ANY_WRITE, (NotEnoughData,)),
)
async def calibrate(request: Request, collection: Collection) -> Any:
    """Calibrate a collection on the similarities between its own persons, and use the result.

    This needs at least 100 people and takes some seconds. Ids that are probably one person are
    reported and left out. The calibration is used from now on.
    """
    head = AnswerHead(request)
    live = await head.services.scheduler.examine(_calibrate, head.services, collection)
    members = await head.services.scheduler.search(_describe, head.services, collection)
    suspects = [asdict(suspect) for suspect in live.suspects]
    return {**head.envelope(), **members, "suspected_duplicates": suspects}


@router.get("/calibration", response_model=CalibrationAnswer, responses=problems(IN_SPACE))
async def read_calibration(request: Request, collection: Collection) -> Any:
    """Read the calibration in use, the collection's own or the pack's, and its operating points."""
    head = AnswerHead(request)
    members = await head.services.scheduler.search(_describe, head.services, collection)
    return {**head.envelope(), **members}


@router.delete(
    "/calibration", response_model=CalibrationAnswer, responses=problems(IN_SPACE, ANY_WRITE)
)
async def delete_calibration(request: Request, collection: Collection) -> Any:
    """Delete the collection's own calibration and use that of the model pack again.

    The answer is the calibration that is used from now on.
    """
    head = AnswerHead(request)
    store = head.services.gallery.store
    await head.services.scheduler.delete(store.clear_calibration, collection)
    members = await head.services.scheduler.search(_describe, head.services, collection)
    return {**head.envelope(), **members}


def _calibrate(services: Services, collection: str) -> CollectionCalibration:
    if not services.calibrating.acquire(blocking=False):
        raise Overloaded(
            "A collection is being calibrated; one at a time, try again in a few seconds.",
            {"retry_after": RETRY_AFTER_S},
        )
    try:
        generator = np.random.default_rng(secrets.randbits(64))
        return calibrate_collection(
            services.gallery, collection, generator, domain=services.calibrations.domain
        )
    finally:
        services.calibrating.release()


def _describe(services: Services, collection: str) -> dict[str, Any]:
    record = services.gallery.require(collection)
    chain = services.calibrations.chain(record)
    calibration = next(iter(chain.calibrations), None)
    gallery = services.gallery
    return calibration_members(calibration, gallery.size(collection), gallery.likeness(collection))
