"""Parts of addresses that settings have: origins of web pages, as browsers name them, and the path
under which a proxy publishes the service."""

import re
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#@*\sA-Z]+")


def _origin(value: str) -> str:
    """As browsers send it (https://fetch.spec.whatwg.org/#origin-header): in small letters, and
    without the port that the scheme has anyway."""
    scheme = value.partition(":")[0]
    usual = {"http": ":80", "https": ":443"}.get(scheme)
    if not _ORIGIN.fullmatch(value) or (usual and value.endswith(usual)):
        raise ValueError(
            "must be an origin as browsers send it: scheme, host and, if it is not the usual one, "
            "port, in small letters and without a path, such as https://kiosk.example or "
            "http://localhost:8080. * alone stands for every origin, and cannot be a part of one"
        )
    return value


# One that may call the API, or * for every one.
Origin = Annotated[str, AfterValidator(_origin)]


ROOT_PATH = r"^(/[^/?#]+)*$"


def _root_path(value: str) -> str:
    if not re.fullmatch(ROOT_PATH, value):
        raise ValueError(
            "must be /part, or several such parts, with no / at the end, no ? and no #"
        )
    return value


RootPath = Annotated[
    str, AfterValidator(_root_path), WithJsonSchema({"type": "string", "pattern": ROOT_PATH})
]
