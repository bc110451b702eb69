"""Enroll, identify and verify as functions, without HTTP: what every entry point calls."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.decision.gates import MILD_GATE, check_quality
from app.decision.pair_lifts import PairLift, PairLifts
from app.decision.policy import CollectionPolicy
from app.decision.thresholds import ThresholdDecision, ThresholdRequest, ThresholdSource
from app.decision.verdicts import Status
from app.errors import (
    CollectionNotFound,
    ConsentMissing,
    EnrolledBefore,
    ImageError,
    InvalidEmbedding,
    InvalidRequest,
    LikenessError,
    NoFaceEnrolled,
    PersonNotFound,
    StoreUnavailable,
)
from app.gallery import candidates as candidates_module
from app.imaging import encode_crop, read_header
from app.imaging.formats import Header
from app.recognition import analysis as analysis_module
from app.recognition import enroll as enroll_module
from app.recognition import identify as identify_module
from app.recognition import verify as verify_module
from app.recognition.analysis import StageTimes, embedding_of
from app.recognition.enroll import AnswerToKeep, Enrollment, EnrollRequest, enroll
from app.recognition.identify import Identification, IdentifyRequest, identify
from app.recognition.verify import Verification, VerifyRequest, verify
from app.services import Services, build_services
from app.settings import Settings
from app.store.records import RequestKey
from app.telemetry.logs import LOGGER_NAME
from app.types import Face, FloatArray, JsonObject
from tests.writing import delete_collection

Photo = Callable[[str], bytes]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    services = build_services(Settings(data_dir=tmp_path_factory.mktemp("data")))
    yield services
    services.close()


@pytest.fixture(scope="module")
def photo(photos: Path) -> Photo:
    return lambda name: (photos / f"{name}.jpg").read_bytes()


@pytest.fixture(scope="module")
def obama(services: Services, photo: Photo) -> str:
    services.gallery.create_collection("presidents", {})
    request = EnrollRequest("presidents", "obama")
    done = asyncio.run(enroll(services, [photo("obama")], request, StageTimes()))
    return done.stored[0].stored.face.face_id


def test_the_embeddings_of_many_photos_are_collected_off_the_event_loop(
    services: Services, photo: Photo, obama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 photos may have 8,192 faces: that takes many milliseconds."""
    threads: list[threading.Thread] = []

    def noted(face: Face) -> FloatArray:
        threads.append(threading.current_thread())
        return embedding_of(face)

    monkeypatch.setattr(identify_module, "embedding_of", noted)
    data = [photo("obama"), photo("obama2")]
    asyncio.run(identify(services, data, IdentifyRequest("presidents"), StageTimes(), id))
    assert len(threads) >= 2
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("error", [StoreUnavailable("The database cannot be read."), MemoryError()])
def test_what_is_stored_is_enrolled_though_the_index_was_not_updated(
    services: Services,
    photo: Photo,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    error: Exception,
) -> None:
    name = f"behind-{type(error).__name__}"
    services.gallery.create_collection(name, {})
    embedding = services.pipeline.analyse(photo("obama"), max_faces=1).faces[0].embedding
    assert embedding is not None

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as broken, caplog.at_level("WARNING", LOGGER_NAME):
        for method in ("add", "follow"):
            broken.setattr(services.gallery._indexes, method, fails)
        # One photo, several, and embeddings take different ways.
        for person_id, photos, embeddings in (
            ("one", 1, []),
            ("two", 2, []),
            ("3", 0, [embedding]),
        ):
            request = EnrollRequest(name, person_id, embeddings=embeddings)
            data = [photo("obama"), photo("obama2")][:photos]
            done = asyncio.run(enroll(services, data, request, StageTimes()))
            assert len(done.stored) == photos + len(embeddings)
    assert [record.message for record in caplog.records] == [
        "the index was not updated after a write"
    ] * 3
    answer = asyncio.run(
        identify(services, [photo("obama")], IdentifyRequest(name), StageTimes(), id)
    )[0]
    assert {one.face.person_id for one in answer.faces[0].candidates} == {"one", "two", "3"}


def test_a_collection_that_is_deleted_during_an_enrollment_is_no_error_of_the_index(
    services: Services, photo: Photo, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    services.gallery.create_collection("short-lived", {})
    follow = services.gallery.follow

    def closed(*_: object) -> None:
        raise StoreUnavailable("The index is not open.")

    def deleted_before(name: str) -> None:
        delete_collection(services.gallery, name)
        follow(name)

    monkeypatch.setattr(services.gallery._indexes, "add", closed)
    monkeypatch.setattr(services.gallery, "follow", deleted_before)
    with caplog.at_level("WARNING", LOGGER_NAME):
        request = EnrollRequest("short-lived", "obama")
        done = asyncio.run(enroll(services, [photo("obama")], request, StageTimes()))
    assert len(done.stored) == 1
    assert caplog.records == []


def test_one_photo_enrolls_another_is_rejected(services: Services, photo: Photo) -> None:
    services.gallery.create_collection("new", {})
    times, request = StageTimes(), EnrollRequest("new", "biden", {"office": "president"})
    done = asyncio.run(enroll(services, [b"no image", photo("biden")], request, times))
    assert list(done.stored) == [1]
    assert isinstance(done.rejected[0], ImageError)
    assert services.gallery.store.persons.get("new", "biden").metadata == {"office": "president"}
    assert {"decode", "detect", "embed", "store"} <= times.milliseconds.keys()


def test_without_a_usable_photo_no_person_is_created(services: Services, photo: Photo) -> None:
    gate = MILD_GATE.model_copy(update={"min_face_size_px": 5_000})
    policy = CollectionPolicy(enroll_gate=gate)
    services.gallery.create_collection("strict", {}, policy.model_dump(mode="json"))
    request = EnrollRequest("strict", "biden")
    done = asyncio.run(enroll(services, [photo("biden")], request, StageTimes()))
    assert (dict(done.stored), done.rejected[0].code) == ({}, "face_too_small")
    with pytest.raises(PersonNotFound):
        services.gallery.store.persons.get("strict", "biden")


def test_an_enrollment_with_a_key_is_done_once(services: Services, photo: Photo) -> None:
    services.gallery.create_collection("once", {})

    def answer(done: Enrollment) -> JsonObject:
        return {"faces": [one.stored.face.face_id for one in done.stored.values()]}

    async def run() -> Enrollment:
        kept = AnswerToKeep(RequestKey("key", "digest"), answer)
        request = EnrollRequest("once", "biden")
        return await enroll(services, [photo("biden")], request, StageTimes(), kept=kept)

    first = asyncio.run(run())
    with pytest.raises(EnrolledBefore):
        asyncio.run(run())
    kept = services.gallery.store.idempotency.answered("once", RequestKey("key", "digest"))
    assert kept == answer(first)


def test_an_embedding_is_enrolled_by_the_write_alone(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change to another thread costs more CPU time than the check of a few embeddings."""
    services.gallery.create_collection("vectors", {}, {"consent_required": True})
    vectors = np.eye(6, services.pack.recogniser.dimension, dtype=np.float32)
    asked: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        run = getattr(services.scheduler, name)

        async def counting(*given: Any) -> Any:
            asked.append(name)
            return await run(*given)

        return counting

    for name in ("read", "search"):
        monkeypatch.setattr(services.scheduler, name, counted(name))

    def enrolled(count: int, metadata: JsonObject, collection: str = "vectors") -> int:
        request = EnrollRequest(collection, "ada", metadata, list(vectors[:count]))
        return len(asyncio.run(enroll(services, [], request, StageTimes())).stored)

    consent: JsonObject = {"consent": {"reference": "form 17"}}
    assert services.gallery.identify("vectors", vectors[:1], 1).rows == [[]]  # opens the index
    assert (enrolled(1, consent), asked) == (1, [])
    assert (enrolled(6, consent), asked) == (6, ["search"]), "many are checked on a thread"
    for metadata, collection, error in (
        ({}, "vectors", ConsentMissing), (consent, "missing", CollectionNotFound),
    ):  # fmt: skip
        with pytest.raises(error):
            enrolled(1, metadata, collection)
    (best,) = services.gallery.identify("vectors", vectors[:1], 1).rows[0]
    assert best.face.person_id == "ada", "what was rejected has changed nothing"


def test_what_is_wrong_with_a_collection_comes_before_what_is_wrong_with_an_embedding(
    services: Services,
) -> None:
    services.gallery.create_collection("short", {})
    for collection, error in (("missing", CollectionNotFound), ("short", InvalidEmbedding)):
        request = EnrollRequest(collection, "ada", None, [[1.0, 2.0]])
        with pytest.raises(error):
            asyncio.run(enroll(services, [], request, StageTimes()))


def test_each_face_is_identified(services: Services, photo: Photo, obama: str) -> None:
    times, request = StageTimes(), IdentifyRequest("presidents", top_k=1)

    def answer_of(found: Identification) -> tuple[int, bool]:
        return len(found.faces), "search" in times.milliseconds

    photos = [photo("obama2"), photo("biden"), b"no image"]
    found, made = asyncio.run(identify(services, photos, request, times, answer_of))
    assert made == (2, True), "the time of the search is known when the answer is made"
    assert [one.verdict.status for one in found.faces] == [Status.IDENTIFIED, Status.UNKNOWN]
    assert [one.candidates[0].face.face_id for one in found.faces] == [obama] * 2
    assert [isinstance(one, LikenessError) for one in found.photos] == [False, False, True]
    assert (found.searched.persons, found.threshold.source) == (1, ThresholdSource.DEFAULT)
    assert "search" in times.milliseconds


def thread_of_the_search(services: Services, photos: list[bytes], request: IdentifyRequest) -> str:
    def answer_of(_: Identification) -> str:
        return threading.current_thread().name.rpartition("_")[0]

    return asyncio.run(identify(services, photos, request, StageTimes(), answer_of))[1]


def test_a_search_that_is_short_follows_on_the_thread_of_its_photo(
    services: Services, photo: Photo, obama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, request = [photo("obama2")], IdentifyRequest("presidents")
    assert thread_of_the_search(services, [*photos, photo("biden")], request) == "search"
    assert thread_of_the_search(services, photos, request) == "inference"
    filtered = IdentifyRequest("presidents", filter={"office": "president"})
    assert thread_of_the_search(services, photos, filtered) == "search"
    with monkeypatch.context() as changed:  # longer than a photo
        changed.setattr(candidates_module, "MOST_AT_ONCE", 0)
        assert thread_of_the_search(services, photos, request) == "search"
    with monkeypatch.context() as changed:  # each read waits for a server
        changed.setattr(type(services.gallery.store.database), "in_process", False)
        assert thread_of_the_search(services, photos, request) == "search"


def test_a_search_beside_its_photo_finds_what_another_thread_finds(
    services: Services, photo: Photo, obama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> list[object]:
        request = IdentifyRequest("presidents", top_k=3)
        run = identify(services, [photo("obama2")], request, StageTimes(), lambda _: None)
        answer, _ = asyncio.run(run)
        return [answer.threshold, answer.searched, *(one.candidates for one in answer.faces)]

    beside = found()
    monkeypatch.setattr(candidates_module, "MOST_AT_ONCE", 0)
    assert found() == beside


def test_threads_that_help_change_no_number(services: Services, photo: Photo) -> None:
    steps = services.pipeline.steps(photo("obama"), max_faces=5)
    beside = asyncio.run(services.scheduler.infer(steps)).faces
    alone = services.pipeline.analyse(photo("obama"), max_faces=5).faces
    for one, other in zip(beside, alone, strict=True):
        np.testing.assert_array_equal(embedding_of(one), embedding_of(other))
        np.testing.assert_array_equal(one.landmarks, other.landmarks)


def test_errors_of_a_photo_and_its_collection_are_the_same_on_one_thread(
    services: Services, photo: Photo
) -> None:
    for name, data, error in (
        ("nobody", b"no image", CollectionNotFound), ("default", b"no image", ImageError),
    ):  # fmt: skip
        with pytest.raises(error):
            thread_of_the_search(services, [data], IdentifyRequest(name))


def test_too_many_candidates_are_refused(
    services: Services, photo: Photo, obama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(**options: Any) -> None:
        request = IdentifyRequest("presidents", **options)
        asyncio.run(identify(services, [photo("obama")], request, StageTimes(), id))

    with monkeypatch.context() as patch:
        patch.setattr(identify_module, "MAX_CANDIDATES", 4)
        with pytest.raises(InvalidRequest, match="top_k=5"):
            searched()
    monkeypatch.setattr(identify_module, "MAX_RIVALS", 0)
    searched()
    with pytest.raises(InvalidRequest, match="one_person_once compares each of 1 faces with 1"):
        searched(one_person_once=True)


def verified(
    services: Services, probe: bytes, request: VerifyRequest, *reference: bytes
) -> Verification:
    work = verify(services, [probe, *reference], request, StageTimes(), lambda _: None)
    return asyncio.run(work)[0]


@pytest.mark.parametrize("count", [1, 2])
def test_headers_are_read_on_the_threads_of_the_photos(
    services: Services, photo: Photo, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """One with thousands of parts takes milliseconds, which must not be the event loop's."""
    threads = list[str]()

    def read(data: bytes) -> Header | None:
        threads.append(threading.current_thread().name.rpartition("_")[0])
        return read_header(data)

    monkeypatch.setattr(analysis_module, "read_header", read)
    request = EnrollRequest("default", "obama")
    asyncio.run(enroll(services, [photo("obama")] * count, request, StageTimes()))
    assert threads == ["inference"] * count


def thread_of_the_comparison(
    services: Services, photos: list[bytes], request: VerifyRequest
) -> str:
    def answer_of(_: Verification) -> str:
        return threading.current_thread().name.rpartition("_")[0]

    return asyncio.run(verify(services, photos, request, StageTimes(), answer_of))[1]


def test_a_claim_is_decided_on_the_thread_of_its_photo(
    services: Services, photo: Photo, obama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, request = [photo("obama2")], VerifyRequest("presidents", "obama")
    assert thread_of_the_comparison(services, photos, request) == "inference"
    two = VerifyRequest("presidents")
    assert thread_of_the_comparison(services, photos * 2, two) == "database-read"
    of_searches = VerifyRequest("presidents", "obama", ThresholdRequest(target_fpir=0.01))
    assert thread_of_the_comparison(services, photos, of_searches) == "search"
    with monkeypatch.context() as changed:  # longer than a photo
        changed.setattr(verify_module, "MOST_TEMPLATES_AT_ONCE", 0)
        assert thread_of_the_comparison(services, photos, request) == "database-read"
    with monkeypatch.context() as changed:  # each read waits for a server
        changed.setattr(type(services.gallery.store.database), "in_process", False)
        assert thread_of_the_comparison(services, photos, request) == "database-read"


def test_a_claim_is_decided_alike_on_another_thread(
    services: Services, photo: Photo, obama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> list[object]:
        one = verified(services, photo("obama2"), VerifyRequest("presidents", "obama"))
        assert one.nearest is not None
        return [one.threshold, one.similarity, one.nearest.face, one.nearest.compared, one.accepted]

    beside = found()
    monkeypatch.setattr(type(services.gallery.store.database), "in_process", False)
    assert found() == beside


@pytest.mark.parametrize("in_process", [True, False])
def test_an_unknown_person_costs_no_photo_and_errors_name_the_photo(
    services: Services, obama: str, monkeypatch: pytest.MonkeyPatch, in_process: bool
) -> None:
    monkeypatch.setattr(type(services.gallery.store.database), "in_process", in_process)
    for claimed, error, text in (
        ("nobody", PersonNotFound, "nobody"), ("obama", ImageError, "'image'"),
    ):  # fmt: skip
        with pytest.raises(error, match=text):
            verified(services, b"no image", VerifyRequest("presidents", claimed))


def test_a_claim_is_verified(services: Services, photo: Photo, obama: str) -> None:
    request = VerifyRequest("presidents", "obama")
    mine = verified(services, photo("obama2"), request)
    other = verified(services, photo("biden"), request)
    assert (mine.reached, other.reached) == (True, False)
    assert mine.nearest is not None
    assert (mine.nearest.face.face_id, mine.reference) == (obama, None)


def test_the_two_faces_raise_the_threshold_of_a_verification(
    services: Services, photo: Photo, obama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = services.calibrations.pack
    assert pack is not None
    assert pack.domain is not None
    known = pack.domain
    any_face = PairLift(
        direction=(0.0,) * 192, offset=-1.0, lift=0.04, source="x", faces=1, digest="0" * 64
    )

    def compare(lifts: PairLifts, *references: bytes, **asked: float) -> ThresholdDecision:
        domain = known.model_copy(update={"verification": lifts})
        lifted = pack.model_copy(update={"domain": domain})
        monkeypatch.setattr(services.calibrations, "pack", lifted)
        person = None if references else "obama"
        request = VerifyRequest("presidents", person, ThresholdRequest(**asked))
        found = verified(services, photo("biden"), request, *references)
        return found.threshold

    for references in ((), (photo("obama2"),)):
        plain = compare(PairLifts(), *references)
        raised = compare(PairLifts(degraded=any_face), *references)
        assert plain.lift == 0
        assert raised.lift == pytest.approx(0.04)
        assert raised.threshold == pytest.approx(plain.threshold + 0.04)
        fixed = compare(PairLifts(degraded=any_face), *references, threshold=0.5)
        assert (fixed.threshold, fixed.lift) == (0.5, 0)
        assert fixed.shift == pytest.approx(0.04)
    # A threshold for searches follows the gallery, which is small here.
    assert compare(PairLifts(degraded=any_face), target_fpir=0.01).lift == 0


def test_two_photos_are_compared(services: Services, photo: Photo) -> None:
    request = VerifyRequest("default", threshold=ThresholdRequest(threshold=-1.0))
    found = verified(services, photo("obama"), request, photo("obama2"))
    assert (found.reached, found.nearest) == (True, None)
    assert found.reference is not None
    names = VerifyRequest("default", names=("first", "second"))
    with pytest.raises(ImageError, match="'second'"):
        verified(services, photo("obama"), names, b"no image")


def test_a_person_without_a_face_cannot_be_claimed(services: Services, photo: Photo) -> None:
    services.gallery.create_collection("empty", {})
    services.gallery.store.persons.create("empty", "ada", {})
    for person_id, error in (("ada", NoFaceEnrolled), ("bob", PersonNotFound)):
        request = VerifyRequest("empty", person_id)
        with pytest.raises(error):
            verified(services, photo("obama"), request)


def test_no_photo_is_analysed_for_a_consent_that_was_withdrawn(services: Services) -> None:
    """It has no face, which would be the reason if it was."""
    services.gallery.create_collection("withdrawn", {}, {"consent_required": True})
    consent: JsonObject = {"consent": {"reference": "form 17"}}
    persons = services.gallery.store.persons
    persons.create("withdrawn", "ada", consent)
    persons.delete("withdrawn", "ada", "consent_withdrawn")
    nobody = encode_crop(np.zeros((99, 99, 3), np.uint8))
    wanted = EnrollRequest("withdrawn", "ada", consent)
    with pytest.raises(ConsentMissing, match="has withdrawn"):
        asyncio.run(enroll(services, [nobody], wanted, StageTimes()))


def test_a_consent_that_is_withdrawn_while_the_photo_is_analysed_counts(
    services: Services, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.gallery.create_collection("consents", {}, {"consent_required": True})
    consent: JsonObject = {"reference": "form 17"}
    wanted = EnrollRequest("consents", "obama", {"consent": consent})
    asyncio.run(enroll(services, [photo("obama")], wanted, StageTimes()))
    compare = services.gallery.compare

    def withdrawn_first(*given: Any) -> Any:
        withdrawn = {"consent": {**consent, "withdrawn": True}}
        services.gallery.store.persons.update("consents", "obama", withdrawn)
        return compare(*given)

    monkeypatch.setattr(services.gallery, "compare", withdrawn_first)
    with pytest.raises(ConsentMissing):
        verified(services, photo("obama"), VerifyRequest("consents", "obama"))


@pytest.mark.parametrize("call", ["identify one", "identify two", "verify"])
def test_a_collection_that_is_made_again_while_a_photo_is_analysed_is_another_one(
    services: Services, photo: Photo, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Its people are not answered by the policy of the one that was deleted."""
    name = f"made-again-{call.replace(' ', '-')}"

    def make() -> None:
        services.gallery.create_collection(name, {})
        wanted = EnrollRequest(name, "obama", embeddings=[np.eye(1, 192)[0]])
        asyncio.run(enroll(services, [], wanted, StageTimes()))

    def make_again() -> None:
        delete_collection(services.gallery, name)
        make()

    def made_again(face: Face) -> FloatArray:
        monkeypatch.undo()
        other = threading.Thread(target=make_again)
        other.start()
        other.join()
        return embedding_of(face)

    make()
    module = verify_module if call == "verify" else identify_module
    monkeypatch.setattr(module, "embedding_of", made_again)
    data = [photo("obama"), photo("obama2")][: 2 if call == "identify two" else 1]
    work: Coroutine[Any, Any, Any] = (
        verify(services, data, VerifyRequest(name, "obama"), StageTimes(), id)
        if call == "verify"
        else identify(services, data, IdentifyRequest(name), StageTimes(), id)
    )
    with pytest.raises(CollectionNotFound):
        asyncio.run(work)
    assert services.gallery.has_person(name, "obama")


@pytest.mark.parametrize("count", [1, 2])
def test_photos_are_not_enrolled_in_a_collection_that_is_made_again_meanwhile(
    services: Services, photo: Photo, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Its gate has not seen them."""
    name = f"gate-made-again-{count}"
    services.gallery.create_collection(name, {})

    def make_again() -> None:
        delete_collection(services.gallery, name)
        services.gallery.create_collection(name, {}, {"enroll_gate": {"min_sharpness": 1e6}})

    def made_again(*given: Any) -> None:
        monkeypatch.undo()
        other = threading.Thread(target=make_again)
        other.start()
        other.join()
        check_quality(*given)

    monkeypatch.setattr(enroll_module, "check_quality", made_again)
    data = [photo("obama"), photo("obama2")][:count]
    with pytest.raises(CollectionNotFound):
        asyncio.run(enroll(services, data, EnrollRequest(name, "obama"), StageTimes()))
    assert not services.gallery.has_person(name, "obama")
