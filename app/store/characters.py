"""Characters of text from clients: their names in messages, and which are refused."""

import re
import unicodedata

ZERO_WIDTH_JOINERS = "\u200c\u200d"
# Scripts in which U+200C and U+200D are visible, by the first word of a letter's Unicode name.
JOINING_SCRIPTS = frozenset({
    "ARABIC", "SYRIAC", "MANDAIC", "NKO", "ADLAM", "MONGOLIAN", "DEVANAGARI", "BENGALI", "GURMUKHI",
    "GUJARATI", "ORIYA", "TAMIL", "TELUGU", "KANNADA", "MALAYALAM", "SINHALA", "KHMER", "MYANMAR",
    "TIBETAN", "BALINESE", "JAVANESE", "SUNDANESE",
})  # fmt: skip
VIRAMA = 9  # canonical combining class
# Invisible letters, marks and a symbol (Default_Ignorable_Code_Point without format characters and
# variation selectors, and the empty Braille pattern).
BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")
_KINDS = {
    "Cc": "a control character",
    "Cf": "an invisible format character",
    "Cn": "an unassigned character",
    "Co": "a private use character",
    "Cs": "a lone surrogate",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
    "Zs": "a space other than U+0020",
}


def describe(text: str, index: int) -> str:
    """A character for a message: U+202E RIGHT-TO-LEFT OVERRIDE at position 3, counted from 1."""
    character = text[index]
    kind = _KINDS.get(unicodedata.category(character), "a character")
    name = unicodedata.name(character, f"({kind.partition(' ')[2]})")
    return f"U+{ord(character):04X} {name} at position {index + 1}"


def not_storable(text: str) -> int | None:
    """The index of the first character that cannot be stored: a lone surrogate or NUL; else
    None."""
    found = _NOT_STORABLE.search(text)
    return None if found is None else found.start()


def storable(text: str) -> str:
    """The text with U+FFFD instead of characters that cannot be stored."""
    return _NOT_STORABLE.sub("\ufffd", text)


def not_visible(text: str) -> int | None:
    """The index of the first invisible character, else None: control and format characters (which
    include those that change the writing direction), spaces other than U+0020, unassigned and
    private use characters, lone surrogates.

    U+200C and U+200D are visible between letters of scripts that need them, and after a virama; a
    variation selector is after a symbol or a letter of a script without case.
    """
    for index, character in enumerate(text):
        if character in ZERO_WIDTH_JOINERS:
            if not _joins(text, index):
                return index
        elif _is_variation_selector(character):
            if index == 0 or unicodedata.category(text[index - 1]) not in ("So", "Sm", "Po", "Lo"):
                return index
        elif character in BLANK or not character.isprintable():
            return index
    return None


def _joins(text: str, index: int) -> bool:
    before, after = text[:index][-1:], text[index + 1 :][:1]
    if before and unicodedata.combining(before) == VIRAMA:
        return True
    return _is_of_joining_script(before) and _is_of_joining_script(after)


def _is_of_joining_script(character: str) -> bool:
    """Whether it is a letter or mark of one of JOINING_SCRIPTS."""
    if not character or unicodedata.category(character)[0] not in "LM":
        return False
    return unicodedata.name(character, "").partition(" ")[0] in JOINING_SCRIPTS


def _is_variation_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
