"""One name for one thing: the name of a public class of `app` means nothing else in it. And plain
words: those that earlier versions used in a sense of their own do not come back."""

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
# A class of any level, and an alias of a type: a name in capitals and small letters, at the margin.
_CLASS = re.compile(r"^ *class ([A-Z]\w*)", re.MULTILINE)
_ALIAS = re.compile(r"^([A-Z]\w*[a-z]\w*)(?:: [^=\n]+)? = ", re.MULTILINE)


def test_every_class_has_a_name_of_its_own() -> None:
    classes: dict[str, list[str]] = defaultdict(list)
    aliases: dict[str, list[str]] = defaultdict(list)
    for file in sorted((ROOT / "app").rglob("*.py")):
        text, name = file.read_text(encoding="utf-8"), str(file.relative_to(ROOT))
        for names, pattern in ((classes, _CLASS), (aliases, _ALIAS)):
            for found in pattern.findall(text):
                names[found].append(name)
    assert {"ModelPack", "Store"} <= classes.keys()  # the patterns find what they should
    assert "FloatArray" in aliases
    shared = {
        name: files + aliases[name]
        for name, files in classes.items()
        if len(files) + len(aliases[name]) > 1
    }
    assert shared == {}


# To parse every file would take six seconds.
_DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)


def test_the_docstring_of_a_module_is_a_sentence() -> None:
    found = {
        str(file.relative_to(ROOT)): _DOCSTRING.match(file.read_text("utf-8"))
        for name in ("app", "tests", "benchmarks", "scripts")
        for file in (ROOT / name).rglob("*.py")
    }
    assert found["app/disk.py"]
    assert [name for name, text in found.items() if text and len(text[1].split()) < 3] == []


# What to write instead is in docs/glossary.md. Names are taken apart: `_open_lane` has a `lane`.
_PRIVATE = re.compile(
    "whoever|told|kin|doors?|rooms|mend(s|ed|ing)?|spares?|lanes?|shelf|shelves|upkeep|"
    "wish(es|ed)?|judge[sd]?|judging|tend(s|ed)?"
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# Names that stay as they are: a field and a metric of the API, a table, a member of DLPack.
_KEPT = re.compile(r"[\"`.]upkeep|upkeep[:=]|likeness_upkeep|\bspares\b|_and_spares|\"lanes\"")


def test_private_words_do_not_come_back() -> None:
    folders = [ROOT / name for name in ("app", "tests", "benchmarks", "scripts", "docs", "models")]
    files = [*ROOT.iterdir(), *(file for folder in folders for file in folder.rglob("*"))]
    found, read = [], 0
    for file in files:
        if file.suffix not in (".py", ".md", ".sh", ".toml", ".yml") or file == Path(__file__):
            continue
        if "node_modules" in file.parts:  # others' text, after `make clients`
            continue
        read += 1
        for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
            words = [one for one in _WORD.findall(line) if _PRIVATE.fullmatch(one.lower())]
            if "an error of ours" in line or (words and not _KEPT.search(line)):
                found.append(f"{file.relative_to(ROOT)}:{number}: {words}")
    assert read > 500  # the folders are there
    assert found == []
