"""What is asked of the error rates: a named requirement, or the operator's own as TOML."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.lab.errors import AttestationError

Limit = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
MAX_BYTES = 64 * 1024


class Requirement(BaseModel):
    """Limits that each group and stratum has to keep.

    `gallery_share`: the gallery that is searched must hold at least that share of the persons whom
    the service holds, or is meant to hold (`gallery_persons`). `confidence`: of the one-sided bound
    that must are below a limit. `attributes` must be among the groups that are given; with
    `by_group` there must be one. `strata` must have been measured; those that were are all judged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=200)]
    fpir: Limit
    fnir: Limit | None = None
    gallery_share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.9
    gallery_persons: Annotated[int, Field(ge=1, strict=True)] | None = None
    confidence: Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)] = 0.95
    by_group: bool = True
    attributes: tuple[str, ...] = ()
    strata: tuple[str, ...] = ()


# NIST SP 800-63A-4 (2025), section 3.11: 1:N searches have an FPIR of 1:1,000 or less for each
# demographic group, shown with a gallery of at least 90 % of the current or intended size.
NAMED: Mapping[str, Requirement] = {
    "sp800-63a-4": Requirement(name="NIST SP 800-63A-4, 1:N", fpir=0.001, gallery_share=0.9)
}


def find_requirement(name_or_path: str) -> Requirement:
    """A requirement by its name, or from a TOML file. Raises AttestationError."""
    if name_or_path in NAMED:
        return NAMED[name_or_path]
    path = Path(name_or_path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise AttestationError(
            f"{name_or_path} is neither a named requirement ({', '.join(NAMED)}) nor a file that "
            f"can be read: {reason}."
        ) from error
    if len(content) > MAX_BYTES:
        raise AttestationError(
            f"{path} has more than {MAX_BYTES:,} bytes, so it is not a requirement."
        )
    try:
        return Requirement.model_validate(tomllib.loads(content.decode("utf-8")))
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise AttestationError(f"The requirement {path} is not valid. {found}.") from error
    except (ValueError, RecursionError) as error:
        raise AttestationError(f"{path} is not TOML: {error}") from error
