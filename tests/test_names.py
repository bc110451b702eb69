"""One name for one thing: the name of a public class of `app` means nothing else in it."""

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
