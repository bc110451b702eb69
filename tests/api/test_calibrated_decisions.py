"""Decisions at a named error rate, policies, and collections that calibrate on themselves."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from app.recognition.enroll import template_from_embedding
from app.services import Services
from tests.api.test_decisions import code_of
from tests.decision.conftest import people
from tests.writing import enroll_person

Enroll = Callable[[int], None]


@pytest.fixture
def enroll_made_up(services: Services, collection: str) -> Enroll:
    """Enrolls so many made-up people, two faces each; of the first, the second has its own id."""

    def enroll(count: int) -> None:
        dimension = services.pack.recogniser.dimension
        data = people(count, 2, dimension=dimension, noise=0.3)
        for person in range(count):
            first, second = (
                template_from_embedding(services, v) for v in data.vectors[data.persons == person]
            )
            if person == 0:
                enroll_person(services.gallery, collection, "p0", None, [first])
                enroll_person(services.gallery, collection, "p0 again", None, [second])
            else:
                enroll_person(services.gallery, collection, f"p{person}", None, [first, second])

    return enroll


class TestIdentify:
    def test_the_default_follows_the_size_of_the_gallery(
        self, presidents: Any, enroll_made_up: Enroll
    ) -> None:
        photo = presidents.photo("obama2.jpg")
        small = presidents.identify(photo).json()
        assert (small["threshold_source"], small["target"]) == ("default", 0.01)
        assert small["searched"] == {"persons": 2, "faces": 2}
        assert small["calibration_source"] == "pack"
        assert small["fpir"] == pytest.approx(0.01, rel=0.02)
        enroll_made_up(30)
        large = presidents.identify(photo).json()
        assert large["searched"]["persons"] == 33
        assert large["threshold"] > small["threshold"]
        assert large["calibration_id"] == small["calibration_id"]

    def test_candidates_carry_their_false_match_rate(self, presidents: Any) -> None:
        (face,) = presidents.identify(presidents.photo("obama2.jpg")).json()["faces"]
        best, other = face["candidates"]
        assert best["fmr_interval"][1] < 1e-4
        assert other["fmr"] > 0.01
        assert other["fmr_interval"][0] <= other["fmr"] <= other["fmr_interval"][1]
        assert other["fmr_extrapolated"] is False

    def test_a_target_in_the_call(self, presidents: Any) -> None:
        photo = presidents.photo("obama2.jpg")
        lax, strict = (
            presidents.identify(photo, target_fpir=target).json() for target in ("0.1", "0.001")
        )
        assert lax["threshold_source"] == strict["threshold_source"] == "request"
        assert (lax["target"], strict["target"]) == (0.1, 0.001)
        assert lax["threshold"] < strict["threshold"]
        fmr = presidents.identify(photo, target_fmr="0.0001").json()
        assert fmr["threshold"] > lax["threshold"]

    def test_a_filter_leaves_less_to_search(self, presidents: Any) -> None:
        photo = presidents.photo("obama2.jpg")
        presidents.enroll("biden", photo, metadata='{"office": "vice"}').raise_for_status()
        answer = presidents.identify(photo, filter='{"office": "vice"}').json()
        assert answer["searched"] == {"persons": 1, "faces": 2}

    def test_a_verification_says_how_sure_its_threshold_is(self, presidents: Any) -> None:
        def verified(**fields: str) -> Any:
            probe = presidents.photo("obama2.jpg")
            return presidents.verify(probe, person_id="obama", **fields).json()

        default, tail = verified(), verified(target_fmr="1e-7")
        assert default["threshold_fmr"] == pytest.approx(1e-4, rel=0.02)
        assert default["threshold_fmr_extrapolated"] is False
        assert tail["threshold_fmr"] == pytest.approx(1e-7, rel=0.02)
        assert tail["threshold_fmr_extrapolated"] is True
        for answer in (default, tail):
            low, high = answer["threshold_fmr_interval"]
            assert low <= answer["threshold_fmr"] <= high
        widths = [a["threshold_fmr_interval"][1] / a["threshold_fmr"] for a in (default, tail)]
        assert widths[1] > 2 * widths[0]
        fixed = verified(threshold="0.99")
        assert fixed["threshold_fmr"] is None
        assert fixed["threshold_fmr_interval"][0] == 0 < fixed["threshold_fmr_interval"][1]
        # All templates of the person count, as they do for the threshold.
        before = verified(threshold="0.5")["threshold_fmr"]
        presidents.enroll("obama", presidents.photo("obama3.jpg")).raise_for_status()
        assert verified(threshold="0.5")["threshold_fmr"] > before
        assert verified()["threshold_fmr"] == pytest.approx(1e-4, rel=0.02)

    def test_an_unreachable_target_is_refused_with_the_lowest(self, presidents: Any) -> None:
        answer = presidents.identify(presidents.photo("obama2.jpg"), target_fpir="1e-12")
        assert (answer.status_code, code_of(answer)) == (422, "rate_out_of_reach")
        assert 1e-12 < answer.json()["lowest"] < 1e-4

    def test_one_of_threshold_and_targets(self, presidents: Any) -> None:
        answer = presidents.identify(
            presidents.photo("obama2.jpg"), target_fpir="0.01", threshold="0.5"
        )
        assert (answer.status_code, code_of(answer)) == (422, "invalid_request")
        assert "give only one of" in answer.json()["detail"]

    def test_one_person_once(self, presidents: Any) -> None:
        """Two faces of one photo that both resemble him: one of them is somebody else."""
        import io

        from PIL import Image

        pictures = [Image.open(io.BytesIO(presidents.photo(n))).convert("RGB").resize((400, 500))
                    for n in ("obama.jpg", "obama2.jpg")]  # fmt: skip
        both = Image.new("RGB", (800, 500))
        both.paste(pictures[0], (0, 0))
        both.paste(pictures[1], (400, 0))
        buffer = io.BytesIO()
        both.save(buffer, "PNG")
        twice = presidents.identify(buffer.getvalue()).json()["faces"]
        once = presidents.identify(buffer.getvalue(), one_person_once="true").json()["faces"]
        assert [face["person_id"] for face in twice].count("obama") == 2
        assert [face["person_id"] for face in once].count("obama") == 1
        (other,) = (face for face in once if face["status"] == "unknown")
        assert other["reasons"] == ["assigned_to_other_face"]
        assert other["candidates"][0]["person_id"] == "obama"


class TestVerify:
    def test_its_default_is_one_impostor_in_ten_thousand(self, presidents: Any) -> None:
        answer = presidents.client.post(
            "/v1/verify",
            data={"person_id": "obama", "collection": presidents.name},
            files={"image": presidents.photo("obama3.jpg")},
        ).json()
        assert answer["is_match"] is True
        assert (answer["threshold_source"], answer["target"]) == ("default", 0.0001)
        assert answer["fmr_interval"][1] < 1e-4

    def test_a_target(self, presidents: Any) -> None:
        files = {
            "image": presidents.photo("obama3.jpg"),
            "reference": presidents.photo("obama.jpg"),
        }
        thresholds = []
        for target in ("0.01", "0.00001"):
            answer = presidents.client.post(
                "/v1/verify", data={"target_fmr": target}, files=files
            ).json()
            assert answer["threshold_source"] == "request"
            thresholds.append(answer["threshold"])
        assert thresholds[0] < thresholds[1]

    def test_two_photos_do_not_need_the_collection_s_space(
        self, presidents: Any, services: Services
    ) -> None:
        name = f"{presidents.name}-foreign"
        services.gallery.store.collections.create(name, "es-other", 512, {}, {"target_fmr": 0.001})
        files = {
            "image": presidents.photo("obama.jpg"),
            "reference": presidents.photo("obama3.jpg"),
        }
        answer = presidents.client.post("/v1/verify", data={"collection": name}, files=files)
        assert answer.status_code == 200
        assert (answer.json()["threshold_source"], answer.json()["target"]) == ("collection", 0.001)


class TestPolicy:
    def set_policy(self, gallery: Any, **policy: Any) -> httpx.Response:
        return gallery.client.patch(f"/v1/collections/{gallery.name}", json={"policy": policy})

    def test_a_collection_s_own_target(self, presidents: Any) -> None:
        self.set_policy(presidents, target_fpir=0.001).raise_for_status()
        answer = presidents.identify(presidents.photo("obama2.jpg")).json()
        assert (answer["threshold_source"], answer["target"]) == ("collection", 0.001)

    def test_a_fixed_threshold(self, presidents: Any) -> None:
        self.set_policy(presidents, threshold=0.99).raise_for_status()
        answer = presidents.identify(presidents.photo("obama2.jpg")).json()
        assert (answer["threshold"], answer["target"]) == (0.99, None)
        assert answer["faces"][0]["status"] == "unknown"

    def test_a_gate_rejects_probes_with_reasons(self, presidents: Any) -> None:
        photo = presidents.photo("obama2.jpg")
        gate = {"min_face_size_px": 2000, "min_sharpness": 1e6}
        self.set_policy(presidents, identify_gate=gate).raise_for_status()
        (face,) = presidents.identify(photo).json()["faces"]
        assert (face["status"], face["person_id"]) == ("rejected", None)
        assert face["reasons"] == ["face_too_small", "blurred"]

    def test_a_gate_refuses_enrolments_with_reasons(self, gallery: Any) -> None:
        self.set_policy(gallery, enroll_gate={"min_sharpness": 1e6}).raise_for_status()
        answer = gallery.enroll("obama", gallery.photo("obama.jpg"))
        assert (answer.status_code, code_of(answer)) == (422, "low_quality")
        assert answer.json()["rejected"][0]["reasons"] == ["blurred"]
        self.set_policy(gallery, enroll_gate=None).raise_for_status()
        gallery.enroll("obama", gallery.photo("obama.jpg")).raise_for_status()

    def test_it_is_kept_apart_from_the_metadata(
        self, client: httpx.Client, collection: str
    ) -> None:
        url = f"/v1/collections/{collection}"
        client.patch(url, json={"policy": {"target_fpir": 0.003}}).raise_for_status()
        client.patch(url, json={"metadata": {"a": 1}}).raise_for_status()
        info = client.get(url).json()
        assert (info["metadata"], info["policy"]["target_fpir"]) == ({"a": 1}, 0.003)
        assert info["policy"]["target_fmr"] == 0.0001  # what was not said is the default
        assert info["policy"]["enroll_gate"]["min_face_size_px"] == 20

    @pytest.mark.parametrize(
        ("policy", "code"),
        [
            ({"target_fpir": 0}, "invalid_request"),
            ({"unknown": 1}, "unknown_field"),
            ({"identify_gate": {"min_brightness": 9}}, "invalid_request"),
        ],
    )
    def test_a_policy_that_means_nothing(
        self, client: httpx.Client, collection: str, policy: dict[str, Any], code: str
    ) -> None:
        answer = client.patch(f"/v1/collections/{collection}", json={"policy": policy})
        assert (answer.status_code, code_of(answer)) == (422, code)


class TestLive:
    def test_a_collection_calibrates_on_itself(
        self, presidents: Any, enroll_made_up: Enroll
    ) -> None:
        url = f"/v1/collections/{presidents.name}"
        early = presidents.client.post(f"{url}/calibrate")
        assert (early.status_code, code_of(early)) == (422, "not_enough_data")
        assert presidents.client.get(f"{url}/calibration").json()["calibration_source"] == "pack"
        enroll_made_up(150)
        made = presidents.client.post(f"{url}/calibrate").json()
        assert made["calibration_source"] == "collection"
        assert made["source"]["persons"] == 153
        (suspect,) = made["suspected_duplicates"]
        assert {suspect["person_id_a"], suspect["person_id_b"]} == {"p0", "p0 again"}
        assert [point["target"] for point in made["fpir"]] == [0.1, 0.03, 0.01, 0.003, 0.001]
        # 153 people say little of what one search in a hundred finds.
        deciding = [point["calibration_source"] for point in made["fpir"]]
        assert (deciding[0], deciding[2]) == ("collection", "pack")
        for point in made["fpir"]:
            answer = presidents.identify(
                presidents.photo("obama2.jpg"), target_fpir=point["target"]
            ).json()
            assert answer["calibration_source"] == point["calibration_source"]
            assert answer["threshold"] == pytest.approx(point["threshold"], abs=1e-4)
            own = answer["calibration_id"] == made["calibration_id"]
            assert own is (point["calibration_source"] == "collection")
        assert answer["faces"][0]["person_id"] == "obama"
        assert presidents.client.get(url).json()["calibration_id"] == made["calibration_id"]
        back = presidents.client.delete(f"{url}/calibration").json()
        assert back["calibration_source"] == "pack"

    def test_one_at_a_time(self, client: httpx.Client, collection: str, services: Services) -> None:
        url = f"/v1/collections/{collection}"
        with services.examination:
            calibration, hygiene = client.post(f"{url}/calibrate"), client.get(f"{url}/hygiene")
        for answer, retry_after in ((calibration, "5"), (hygiene, "30")):
            assert (answer.status_code, code_of(answer)) == (503, "overloaded")
            assert answer.json()["detail"].startswith("A collection is being examined or calibr")
            assert answer.headers["retry-after"] == retry_after

    def test_of_nothing(self, client: httpx.Client) -> None:
        answer = client.post("/v1/collections/nowhere/calibrate")
        assert (answer.status_code, code_of(answer)) == (404, "collection_not_found")


def test_the_shipped_calibration_is_the_pack_s(services: Services) -> None:
    shipped = services.calibrations.pack
    assert shipped is not None
    assert shipped.embedding_space == services.pack.embedding_space
    rates = np.array(shipped.fmr.rate)
    assert (np.diff(rates) < 0).all()
    assert json.loads(shipped.model_dump_json())["source"]["persons"] > 2000
