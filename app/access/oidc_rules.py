"""What the settings say about tokens of an OpenID Connect issuer."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.access.keys import KeyLimits, Scope
from app.errors import AccessKeyError
from app.settings import Settings, is_loopback

KEY_ID = "oidc"  # of the keys that tokens become; no stored key has it


@dataclass(frozen=True, slots=True)
class OidcRules:
    """Whose tokens are accepted, and what their claims allow."""

    issuer: str
    audience: str
    scopes_claim: str
    scopes: Mapping[str, Set[Scope]]  # by the value in the claim
    collections_claim: str | None
    limits: KeyLimits  # of each subject

    @classmethod
    def of(cls, settings: Settings) -> "OidcRules | None":
        """Those of the settings; None if they name no issuer. Raises AccessKeyError."""
        issuer = settings.oidc_issuer
        if issuer is None:
            _require_no_rules(settings)
            return None
        if settings.oidc_audience is None:
            raise AccessKeyError(
                "LIKENESS_OIDC_ISSUER is set and LIKENESS_OIDC_AUDIENCE is not. Set it to the "
                "audience that the issuer writes into tokens for this service: without it tokens "
                "for any other service of the issuer would be accepted."
            )
        require_secure(issuer, "LIKENESS_OIDC_ISSUER")
        return cls(
            issuer,
            settings.oidc_audience,
            settings.oidc_scopes_claim,
            _scope_names(settings.oidc_scopes),
            settings.oidc_collections_claim,
            KeyLimits(
                settings.oidc_requests_per_second,
                settings.oidc_photos_per_second,
                settings.oidc_concurrent_requests,
                settings.oidc_photos_per_day,
            ),
        )


def _require_no_rules(settings: Settings) -> None:
    """Raise AccessKeyError if there are rules for tokens, but no issuer: none would be required."""
    given = sorted(one for one in settings.model_fields_set if one.startswith("oidc_"))
    if names := [f"LIKENESS_{one.upper()}" for one in given if getattr(settings, one) is not None]:
        raise AccessKeyError(
            f"LIKENESS_OIDC_ISSUER is not set, but {' and '.join(names)}: no tokens would be "
            "accepted or required. Set the issuer too, or unset the others."
        )


def _scope_names(given: tuple[str, ...]) -> dict[str, Set[Scope]]:
    """Values of the claim and the scopes they give. Raises AccessKeyError."""
    if not given:
        return {f"likeness:{scope}": {scope} for scope in Scope}
    found: dict[str, Set[Scope]] = {}
    for pair in given:
        value, _, scope = pair.rpartition("=")
        if not value or scope not in [*Scope]:
            raise AccessKeyError(
                f"LIKENESS_OIDC_SCOPES has '{pair}'. It takes pairs such as guards=identify, "
                f"separated by commas, with the scopes {', '.join(Scope)}."
            )
        found[value] = found.get(value, set()) | {Scope(scope)}
    return found


def require_secure(address: str, what: str) -> None:
    """Raise AccessKeyError if an address is not https, or http of this machine."""
    parts = urlsplit(address)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and is_loopback(parts.hostname or ""):
        return
    raise AccessKeyError(
        f"{what} is '{address}'. It must begin with https://; http:// is accepted for this "
        "machine only, because anybody who can change the answer in transit can make valid "
        "tokens."
    )
