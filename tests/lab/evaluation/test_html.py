"""The report: one file that reaches for nothing, says nothing twice, and escapes every name."""

import base64
import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PillowImage

from app.decision.rates import Rate
from app.lab.evaluation.figure_rows import rows_of
from app.lab.evaluation.figures import Evaluation, ModelFigures, PhotoProblem
from app.lab.evaluation.html import SHOWN_PROBLEMS, render_html
from app.lab.evaluation.texts import interval_text, rate_text, target_text, verdict
from tests.lab.evaluation.figures_for_tests import HOSTILE, complete_evaluation, minimal_evaluation

pytestmark = pytest.mark.slow

PHOTO = (Path(__file__).resolve().parents[2] / "data" / "photos" / "obama.jpg").read_bytes()
VOID = {"meta", "img", "br"}
OPTIONAL = (
    "pairs", "comparisons", "identification", "predictions", "scores", "discard", "groups",
    "detection", "problems", "worst",
)  # fmt: skip


class Page(HTMLParser):
    """What stands in a page, and whether its elements are closed in the order of opening."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def sections(self) -> list[str]:
        return [section["id"] for section in self.all("section")]


def rendered(evaluation: Evaluation, read_photo: Callable[[str], bytes | None]) -> str:
    return render_html(list(rows_of(evaluation)), read_photo)


def no_photo(_name: str) -> bytes | None:
    return None


def photo_unless_gone(name: str) -> bytes | None:
    return None if name == "gone.jpg" else PHOTO


@pytest.fixture(scope="module")
def photos_read() -> list[str]:
    """The names of the photos that were read for `html`."""
    return []


@pytest.fixture(scope="module")
def html(photos_read: list[str]) -> str:
    def read(name: str) -> bytes | None:
        photos_read.append(name)
        return photo_unless_gone(name)

    return rendered(complete_evaluation(), read)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_it_is_one_page_in_unicode(html: str, page: Page) -> None:
    assert html.startswith("<!doctype html>")
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("meta")[0] == {"charset": "utf-8"}


def test_it_reaches_for_nothing(html: str, page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "base"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
    assert "@import" not in html
    assert "url(http" not in html
    assert html.count("http://") == html.count("http://www.w3.org/2000/svg")
    assert "https://" not in html


def test_a_policy_allows_styles_and_embedded_images_alone(page: Page) -> None:
    policies = [
        meta["content"]
        for meta in page.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_names_are_text(html: str, page: Page) -> None:
    assert "<script" not in html
    assert page.text.count(HOSTILE) >= 3  # a group, a person and a photo are called so
    assert "\"Bob\" 'B'" in page.text
    faces = [image["alt"] for image in page.all("img")]
    assert "Photo b/1.jpg of \"Bob\" 'B'" in faces


def test_hostile_names_of_a_model_are_text_too() -> None:
    model = ModelFigures(HOSTILE, '"><img src=x onerror=y>', "{{ 7 * 7 }}", "'", HOSTILE, "only")
    text = rendered(replace(minimal_evaluation(), model=model, created_at=HOSTILE), no_photo)
    page = Page(text)
    assert page.all("script") == page.all("img") == []
    assert "{{ 7 * 7 }}" in page.text


def test_every_section_is_there_and_can_be_gone_to(page: Page) -> None:
    assert set(page.sections()) == {"summary", *OPTIONAL, "timings", "glossary"}
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert max(ids.values()) == 1
    assert {link["href"].removeprefix("#") for link in page.all("a")} == set(page.sections())


def test_sections_without_data_are_absent() -> None:
    page = Page(rendered(minimal_evaluation(), no_photo))
    assert page.sections() == ["summary", "timings", "glossary"]
    assert [link["href"] for link in page.all("a")] == ["#summary", "#timings", "#glossary"]
    assert page.all("svg") == page.all("img") == []


@pytest.mark.parametrize("section", OPTIONAL[:8])
def test_any_section_may_come_alone(section: str) -> None:
    alone: Any = {section: getattr(complete_evaluation(), section)}
    page = Page(rendered(replace(minimal_evaluation(), **alone), no_photo))
    of_it = {"comparisons": ["worst"], "detection": ["problems"]}.get(section, [])
    assert set(page.sections()) == {"summary", section, *of_it, "timings", "glossary"}


def test_charts_are_inlined(page: Page) -> None:
    assert len(page.all("svg")) == 6
    assert all(svg["role"] == "img" for svg in page.all("svg"))


def test_thumbnails_decode_and_the_report_says_that_it_holds_photos(page: Page) -> None:
    images = page.all("img")
    assert len(images) == 5  # of six faces one has no photo
    for image in images:
        body = image["src"].removeprefix("data:image/jpeg;base64,")
        picture = PillowImage.open(io.BytesIO(base64.b64decode(body)))
        picture.load()
        assert max(picture.size) == 112
    assert "This report holds photos of people." in page.text
    assert "no photo" in page.text


def test_without_thumbnails_it_does_not_say_so() -> None:
    page = Page(rendered(complete_evaluation(), lambda _name: b"not a photo"))
    assert page.all("img") == []
    assert "holds photos of people" not in page.text
    assert "−0.031" in page.text  # the pairs are there all the same


@pytest.mark.usefixtures("html")
def test_each_photo_is_read_once(photos_read: list[str]) -> None:
    assert sorted(photos_read) == ["a/1.jpg", "a/2.jpg", "b/1.jpg", "gone.jpg"]


def test_problems_are_counted_and_the_first_are_listed(page: Page) -> None:
    assert f"The first {SHOWN_PROBLEMS} of 250" in page.text
    assert "no_face : 249" in page.text
    assert "p/50.jpg" in page.text
    assert "p/49.jpg" not in page.text


def test_people_with_one_photo_are_counted_but_are_no_failures() -> None:
    evaluation = minimal_evaluation()
    problems = (PhotoProblem("lonely", "one_photo"), PhotoProblem("dark.jpg", "no_face"))
    data = replace(evaluation.data[0], problems=problems)
    text = Page(rendered(replace(evaluation, data=(data,)), no_photo)).text
    assert "one_photo : 1" in text
    assert "lonely" not in text
    assert "dark.jpg" in text


def test_extrapolated_rates_are_marked(page: Page) -> None:
    assert page.text.count("extrapolated ") >= 2
    assert "Extrapolated:" in page.text


def test_promises_kept_and_not(page: Page) -> None:
    assert "+10 % kept" in page.text
    assert "+100 % not kept" in page.text
    assert "2 of 2" in page.text  # held out ones alone


def test_terms_name_their_sources(page: Page) -> None:
    for source in ("ISO/IEC 19795-1:2021", "FRTE 1:N", "Clopper", "Tabassi", "Huang"):
        assert source in page.text


def test_it_can_be_written_whatever_a_file_is_called() -> None:
    data = replace(
        minimal_evaluation().data[0], problems=(PhotoProblem("odd\udcff.jpg", "no_face"),)
    )
    assert "odd?.jpg" in rendered(replace(minimal_evaluation(), data=(data,)), no_photo)


def test_the_same_figures_give_the_same_page(html: str) -> None:
    assert rendered(complete_evaluation(), photo_unless_gone) == html


@pytest.mark.parametrize(
    ("rate", "value", "interval"),
    [
        (Rate(1.2e-4, 1.0e-4, 1.4e-4), "0.012 %", "0.010–0.014 %"),
        (Rate(1.23e-6, 2.04e-7, 4.0e-6), "1.2e-6", "2.0e-7–4.0e-6"),
        (Rate(0.0, 0.0, 4.2e-6), "0", "0–4.2e-6"),
        (Rate(0.0, 0.0, 0.0152), "0 %", "0–1.5 %"),
        (Rate(0.034567, 0.0249, 0.0512), "3.5 %", "2.5–5.1 %"),
        (Rate(0.992134, 0.98901, 0.99449), "99.2 %", "98.9–99.4 %"),
        (Rate(0.5, 0.5, 0.5), "50.00 %", "50.00–50.00 %"),
        (Rate(float("nan"), float("nan"), float("nan")), "–", "–"),
        (None, "–", "–"),
    ],
)
def test_rates_have_the_digits_that_their_interval_bears(
    rate: Rate | None, value: str, interval: str
) -> None:
    assert (rate_text(rate), interval_text(rate)) == (value, interval)


def test_it_begins_with_the_verdict(page: Page) -> None:
    summary = page.text[page.text.index(" Summary ", page.text.index(" Terms ")) :]
    assert summary.startswith(f" Summary {verdict(complete_evaluation())}")


def test_one_vocabulary_the_other_explained_once(page: Page) -> None:
    """FMR and FNMR, FPIR and FNIR; what papers call them stands among the terms."""
    assert Counter(re.findall(r"\b(?:FAR|TAR|TPIR|TPR|FPR)\b", page.text)) == {"FAR": 1, "TAR": 1}


@pytest.mark.parametrize(
    ("rate", "text"), [(0.1, "10 %"), (0.003, "0.3 %"), (1e-4, "0.01 %"), (1e-5, "1e-5")]
)
def test_targets_are_exact(rate: float, text: str) -> None:
    assert target_text(rate) == text
