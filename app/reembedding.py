"""Moves a collection to another model pack's embedding space: the new embeddings are first stored
beside the old ones, then replace them.

The new embeddings are made of the aligned faces that the collection kept (`keep_crops`). Until the
cut-over the collection is used as before; afterwards the old embeddings are kept beside the new
ones, so that the same steps lead back.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from app.decision.calibrations import pack_calibration
from app.decision.policy import policy_of
from app.decision.thresholds import ONE_COMPARISON
from app.errors import DamagedData, NotReembedded, PackError
from app.faces.embed import Recogniser
from app.imaging import decode_crop
from app.index.comparator import COSINE, Comparator
from app.index.port import PRECISION, Templates
from app.inference.pack_spec import ModelPack
from app.inference.session import OnnxModel
from app.settings import Device
from app.store.pack_specific_policy import require_no_pack_specific_values
from app.store.records import AlternateEmbeddingState, CollectionRecord, KeptCrop
from app.store.store import Store
from app.types import FloatArray, Image

FACES_AT_ONCE = 64
SHOWN = 10  # faces that an error names
# 12.5 million comparisons in each space: seconds.
SAMPLE = 5_000
# Faces are enrolled between a build and the cut-over; embedding the last ones takes little time.
CUT_OVER_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Space:
    """How one space decides a comparison on a gallery's own people. `mated` and `non_mated`:
    comparisons of one person's faces and of different people's; accepted: at `threshold`."""

    threshold: float
    mated: int
    mated_accepted: int
    non_mated: int
    non_mated_accepted: int
    rank_1: float | None  # share of faces whose nearest other face is their own person's


@dataclass(frozen=True, slots=True)
class SpaceComparison:
    """The same comparisons in both spaces, and how many of them are decided otherwise."""

    templates: int
    before: Space
    after: Space
    changed: int


class Reembedding:
    """The move of one collection to the embedding space of the pack `target`. `source` is the pack
    of its present space, if it is known."""

    def __init__(
        self,
        store: Store,
        collection: str,
        source: ModelPack | None,
        target: ModelPack,
        device: Device,
    ) -> None:
        self._collections = store.collections
        self._embeddings = store.alternate_embeddings
        self._name = collection
        self._source = source
        self._target = target
        self._space = target.embedding_space
        self._device = device
        self._same_quality = same_quality_scale(source, target)

    @cached_property
    def _recogniser(self) -> Recogniser:
        model = OnnxModel(self._target.recogniser_path, self._device)
        return Recogniser(model, self._target.recogniser)

    def build(self, progress: Callable[[int, int], None]) -> None:
        """Embed every kept crop that the new space lacks; continues a run that was interrupted.

        Raises NotReembedded where faces were enrolled without keeping their crops, DamagedData
        after all others are embedded if kept crops are damaged, PackError or DeviceError.
        """
        side = self._target.recogniser.input_size
        after, state = 0, self._require_crops()
        progress(state.ready, state.templates)
        done, damaged = state.ready, list[str]()
        while True:
            kept = self._embeddings.crops_to_reembed(self._name, self._space, after, FACES_AT_ONCE)
            if not kept:
                break
            decoded = {one.template_key: _decoded(one) for one in kept}
            damaged += [one.face_id for one in kept if decoded[one.template_key] is None]
            crops = {key: crop for key, crop in decoded.items() if crop is not None}
            after, done = kept[-1].template_key, done + len(crops)
            if not crops:
                continue
            if any(crop.shape != (side, side, 3) for crop in crops.values()):
                raise PackError(
                    f"{self._target.name} takes faces of {side} pixels; those that were "
                    "kept have another size. Enroll into a new collection instead."
                )
            vectors, _ = self._recogniser.embed(np.stack(list(crops.values())))
            made = dict(zip(crops, vectors, strict=True))
            self._embeddings.put(self._name, self._space, made)
            progress(done, state.templates)
        if damaged:
            raise DamagedData(
                f"{len(damaged)} kept faces of '{self._name}' are damaged and cannot be embedded "
                f"again: {', '.join(damaged[:SHOWN])}. All others were. Restore a backup, or "
                "delete these faces, then migrate again."
            )
        self._require_crops()

    def _require_crops(self) -> AlternateEmbeddingState:
        state = self._embeddings.state(self._name, self._space)
        if state.without_crop:
            some = self._embeddings.faces_without_crop(self._name, self._space, SHOWN)
            named = ", ".join(f"{face_id} of '{person_id}'" for face_id, person_id in some)
            raise NotReembedded(
                f"{state.without_crop} of {state.templates} faces of '{self._name}' were "
                "enrolled without their aligned face being kept, and cannot be embedded again, "
                f"such as {named}. Set the collection's policy keep_crops, enroll those photos "
                "again (delete the old faces first), or enroll everybody into a new collection."
            )
        return state

    def compare(self, generator: "np.random.Generator") -> SpaceComparison:
        """Decide a sample's comparisons in both spaces, each at the collection's `target_fmr` by
        its pack's calibration; in the present space at the policy's threshold, if it has one.

        If the pack of the present space is not known, the threshold before is the one that accepts
        as many non-mated comparisons as the new one does.
        """
        record = self._collections.get(self._name)
        policy = policy_of(record)
        other = replace(
            record, embedding_space=self._space, dimension=self._target.recogniser.dimension
        )
        old, new = self._embeddings.both_spaces(self._name, other, SAMPLE, generator)
        same, pairs = _pairs(old)
        by_old, by_new = _comparator(self._source), _comparator(self._target)
        scores = [by_old.scores(old.vectors, old.vectors)[pairs],
                  by_new.scores(new.vectors, new.vectors)[pairs]]  # fmt: skip
        after = _threshold(self._target, policy.target_fmr)
        before = policy.threshold
        if before is None:
            before = (
                _threshold(self._source, policy.target_fmr)
                if self._source is not None
                else _same_rate(scores[0][~same], scores[1][~same], after)
            )
        decisions = [scores[0] >= before, scores[1] >= after]
        return SpaceComparison(
            len(old.keys),
            _space(old, same, decisions[0], before, by_old),
            _space(new, same, decisions[1], after, by_new),
            int((decisions[0] != decisions[1]).sum()),
        )

    def require_no_pack_specific_values(self) -> None:
        """Raise Conflict if the policy has values that stop a cut-over."""
        record = self._collections.get(self._name)
        require_no_pack_specific_values(record, same_quality=self._same_quality)

    def cut_over(self) -> CollectionRecord:
        """Swap the spaces in one transaction; faces that were enrolled since `build` are embedded
        first. Raises NotReembedded if after CUT_OVER_ATTEMPTS there are still some, Conflict if the
        policy has values of the present pack's scale, and what `build` raises."""
        to = (self._name, self._space, self._target.recogniser.dimension)
        for _ in range(CUT_OVER_ATTEMPTS - 1):
            with suppress(NotReembedded):
                return self._embeddings.cut_over(*to, same_quality=self._same_quality)
            self.build(lambda _done, _total: None)
        return self._embeddings.cut_over(*to, same_quality=self._same_quality)


def same_quality_scale(source: ModelPack | None, target: ModelPack) -> bool:
    """Whether a `min_quality_score` means the same for both packs."""
    if source is None or source.quality is None or target.quality is None:
        return False
    unlike = {"file", "licence", "source", "training_data"}
    return source.quality.model_dump(exclude=unlike) == target.quality.model_dump(exclude=unlike)


def _decoded(kept: KeptCrop) -> Image | None:
    """None if it is damaged."""
    return None if kept.crop is None else decode_crop(kept.crop)


def _threshold(pack: ModelPack, target_fmr: float) -> float:
    """Of one comparison at that target, as the service would choose it."""
    calibration = pack_calibration(pack.folder, pack.embedding_space, PRECISION)
    if calibration is None:
        return pack.decision.threshold
    found = calibration.threshold_if_supported(target_fmr, ONE_COMPARISON)
    return pack.decision.threshold if found is None else found


def _pairs(templates: Templates) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of all pairs are of one person, and the pairs as a mask (n, n): those above its
    diagonal."""
    people = templates.person_keys
    above = np.triu(np.ones((len(people), len(people)), np.bool_), k=1)
    return (people[:, None] == people)[above], above


def _comparator(pack: ModelPack | None) -> Comparator:
    """How the service compares embeddings of a pack; by the cosine where the pack is not known."""
    if pack is None:
        return COSINE
    calibration = pack_calibration(pack.folder, pack.embedding_space, PRECISION)
    return COSINE if calibration is None else calibration.comparator


def _same_rate(before: FloatArray, after: FloatArray, threshold: float) -> float:
    """The similarity that as many of `before` reach as of `after` reach the threshold."""
    accepted = int((after >= threshold).sum())
    if len(before) == 0 or accepted == 0:
        return 1.0 if len(before) == 0 else float(np.nextafter(before.max(), np.float32(2)))
    return float(np.sort(before)[-accepted])


def _space(
    templates: Templates,
    same: NDArray[np.bool_],
    accepted: NDArray[np.bool_],
    threshold: float,
    comparator: Comparator,
) -> Space:
    return Space(
        threshold,
        int(same.sum()),
        int((accepted & same).sum()),
        int((~same).sum()),
        int((accepted & ~same).sum()),
        _rank_1(templates, comparator),
    )


def _rank_1(templates: Templates, comparator: Comparator) -> float | None:
    """Among people with several faces: whose nearest other face is their own."""
    similarities = comparator.scores(templates.vectors, templates.vectors)
    np.fill_diagonal(similarities, -np.inf)
    _, number, counts = np.unique(templates.person_keys, return_inverse=True, return_counts=True)
    several = counts[number] > 1
    if not several.any():
        return None
    nearest = templates.person_keys[similarities.argmax(axis=1)]
    return float((nearest == templates.person_keys)[several].mean())
