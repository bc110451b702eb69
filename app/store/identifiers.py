"""The rules for ids that clients choose.

An id that will be stored is checked and converted to Unicode's Normalization Form C. An id that is
looked up is only converted, so that ids stored by earlier versions can still be found.
"""

import re
import unicodedata
import uuid

from app.errors import InvalidRequest
from app.store.characters import describe, not_storable, not_visible

MAX_PERSON_ID = 256
# Limit of an id before it is composed: no composed character has more than four code points.
MAX_DECOMPOSED = 4 * MAX_PERSON_ID
COLLECTION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
REQUEST_KEY_PATTERN = r"^[ -~]{1,255}$"
_COLLECTION = re.compile(COLLECTION_PATTERN.removesuffix("$"))
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
    if not _COLLECTION.fullmatch(text):
        raise InvalidRequest(
            "The name of a collection must have 1 to 64 of the characters A-Z a-z 0-9 . _ - and "
            f"begin with a letter or a digit; {text[:MAX_PERSON_ID]!a} does not."
        )
    return text


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
