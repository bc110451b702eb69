"""The rules for ids that clients choose, and which characters are refused in the text of clients.

An id that will be stored is checked and converted to Unicode's Normalization Form C. An id that is
looked up is only converted, so that ids stored by earlier versions can still be found.
"""

import re
import unicodedata
import uuid

from app.errors import InvalidRequest

# The collection of calls and commands that name none; a database always has it.
DEFAULT_COLLECTION = "default"
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


MAX_PERSON_ID = 256
# Limit of an id before it is composed: no composed character has more than four code points.
MAX_DECOMPOSED = 4 * MAX_PERSON_ID
# Names of collections and of access keys.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
REQUEST_KEY_PATTERN = r"^[ -~]{1,255}$"
_NAME = re.compile(NAME_PATTERN.removesuffix("$"))
_REQUEST_KEY = re.compile(REQUEST_KEY_PATTERN.removesuffix("$"))


def composed(text: str) -> str:
    """The text in Unicode's Normalization Form C, in which ids are stored and compared."""
    return unicodedata.normalize("NFC", text)


def spellings(text: str) -> list[str]:
    """The forms in which an id may be stored: as given, and in Form C; none for a text that no
    database can store. The first one matters for persons whose id a migration could not convert
    because another person has the id in Form C."""
    if len(text) > MAX_DECOMPOSED or not_storable(text) is not None:
        return []
    return list(dict.fromkeys((text, composed(text))))


def new_person_id(text: str) -> str:
    """A person id that is to be stored, in Form C. Raises InvalidRequest.

    It has 1 to 256 characters, all of them visible, no '/' and no space at either end, and is
    neither '.' nor '..': it must fit a URL.
    """
    index = not_visible(text[:MAX_DECOMPOSED])
    if index is not None:
        raise InvalidRequest(
            f"person_id contains {describe(text, index)}, which is invisible and not allowed. "
            "Send the id without it."
        )
    person_id = composed(text) if len(text) <= MAX_DECOMPOSED else text
    if not person_id or len(person_id) > MAX_PERSON_ID or person_id in (".", ".."):
        raise InvalidRequest(
            f"person_id must have 1 to {MAX_PERSON_ID} characters and must not be '.' or '..'; "
            f"this one has {len(person_id)}. Send another id."
        )
    if "/" in person_id:
        raise InvalidRequest(
            f"person_id contains {describe(person_id, person_id.index('/'))}, which would end it "
            "in a URL. Send the id without it."
        )
    if person_id != person_id.strip():
        raise InvalidRequest("person_id begins or ends with a space. Send the id without it.")
    return person_id


def new_collection_name(text: str) -> str:
    """The name of a collection that is to be stored. Raises InvalidRequest."""
    if problem := problem_of_name(text):
        raise InvalidRequest(f"The name of a collection {problem}.")
    return text


def problem_of_name(text: str) -> str | None:
    """What a name of a collection or of an access key must have and this text has not; None if it
    can be such a name."""
    if _NAME.fullmatch(text):
        return None
    return (
        "must have 1 to 64 of the characters A-Z a-z 0-9 . _ - and begin with a letter or a digit; "
        f"{text[:MAX_PERSON_ID]!a} does not"
    )


def new_face_id(text: str) -> str:
    """A face id that is to be stored: a UUID in its usual form. Raises InvalidRequest."""
    try:
        if str(uuid.UUID(text)) == text:
            return text
    except ValueError:
        pass
    raise InvalidRequest(
        f"face_id must be a UUID in lower case with hyphens, not {text[:MAX_PERSON_ID]!a}."
    )


def new_request_key(text: str) -> str:
    """A client's key for a request that is to be stored. Raises InvalidRequest."""
    if not _REQUEST_KEY.fullmatch(text):
        raise InvalidRequest("Idempotency-Key must have 1 to 255 printable ASCII characters.")
    return text
