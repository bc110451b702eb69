"""Patterns of paths: the longest id is found, in linear time."""

import random
import re

import pytest

from app.importing.patterns import PathPattern
from app.importing.source_rows import ImportSourceError


@pytest.mark.parametrize(
    ("pattern", "path", "person"),
    [
        ("{person_id}_*.jpg", "Adam_Sandler_0001.JPG", "Adam_Sandler"),
        ("*_{person_id}.jpg", "2024_ann_lee.jpg", "ann_lee"),
        ("*_{person_id}_*.jpg", "2024_ann_lee_01.jpg", "ann_lee"),
        ("**_{person_id}.jpg", "in_a/folder/2024_ann_lee.jpg", "ann_lee"),
        ("**/{person_id}/**", "all/teams/ann/2024/1.jpg", "2024"),
        ("**/{person_id}/*.jpg", "all/teams/ann/1.jpg", "ann"),
        ("{person_id}/**", "ann/2024/1.jpg", "ann"),
        ("***/{person_id}/1.jpg", "all/ann/1.jpg", "ann"),
        ("{person_id}.jpg", ".jpg", None),
        ("*/{person_id}.jpg", "a/b/ann.jpg", None),
        ("{person_id}+*.jpg", "annn_1.jpg", None),
    ],
)
def test_the_longest_id_in_the_last_name(pattern: str, path: str, person: str | None) -> None:
    assert PathPattern(pattern).person_of(path) == person


def test_a_path_matches_where_a_regular_expression_does() -> None:
    chance = random.Random(3)
    known = {"**": ".*", "*": "[^/]*", "{person_id}": "([^/]+)"}
    for _ in range(3_000):
        parts = chance.choices(["*", "**", "a", "b", "/", "_"], k=chance.randrange(5))
        parts.insert(chance.randrange(len(parts) + 1), "{person_id}")
        pattern = "".join(parts)
        path = "".join(chance.choices("ab/_", k=chance.randrange(9)))
        try:
            found = PathPattern(pattern).person_of(path)
        except ImportSourceError:
            continue
        pieces = re.split(r"(\*\*+|\*|\{person_id\})", pattern)
        translated = "".join(known.get(one.replace("***", "**"), re.escape(one)) for one in pieces)
        expected = re.fullmatch(translated.replace("\\*", ".*"), path)
        assert (found is None) == (expected is None), (pattern, path)
        assert expected is None or found is None or len(found) >= len(expected[1])


@pytest.mark.parametrize("path", ["a" * 60_000, "a/" * 30_000])
def test_what_takes_minutes_if_all_divisions_are_tried(path: str) -> None:
    for pattern in (
        "**a**a**a{person_id}b", "{person_id}***a***a***b", "*a*a*{person_id}b",
        "**{person_id}/b/**",
    ):  # fmt: skip
        assert PathPattern(pattern).person_of(path) is None


@pytest.mark.parametrize("wrong", ["*.jpg", "{person_id}{person_id}", "*a*b*c*{person_id}"])
def test_what_is_no_pattern(wrong: str) -> None:
    with pytest.raises(ImportSourceError, match="pattern"):
        PathPattern(wrong)
