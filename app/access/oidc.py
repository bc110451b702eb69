"""Bearer tokens of an OpenID Connect issuer (RFC 7519, RFC 9068) as access keys.

The issuer's public keys are found by its discovery document and kept in memory. A token is
accepted if one of them signed it, with an algorithm of `ALGORITHMS`, for this service's audience.
"""

import asyncio
import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import jwt

from app.access.keys import WHOLE_SERVICE, AccessKey, Scope
from app.access.oidc_rules import KEY_ID, OidcRules, require_secure
from app.errors import AccessKeyError, Forbidden, StoreUnavailable, Unauthenticated
from app.telemetry.logs import log

# Signatures with a private key only: with HS256 the public key would be the secret.
RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS = (*RSA_ALGORITHMS, "ES256", "ES384", "EdDSA")
MAX_TOKEN_BYTES = 16 * 1024
MAX_SUBJECT = 255  # OpenID Connect Core 1.0, 2
MAX_DOCUMENT_BYTES = 1024 * 1024
FETCH_TIMEOUT_S = 5.0
LEEWAY_S = 30  # by which the clocks of two machines may differ
FRESH_S = 600.0  # the keys are read again after this time
# If the issuer does not answer, its keys are used for this time.
KEPT_S = 24 * 3600.0
# A token of an unknown key makes the keys be read again, but not more often.
PAUSE_S = 30.0
# What reading the keys of an issuer can end with, whatever it answers.
FAILURES = (
    httpx.HTTPError, httpx.InvalidURL, jwt.PyJWTError, ValueError, RecursionError, TimeoutError,
    AccessKeyError,
)  # fmt: skip
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class _KeySet:
    """The issuer's keys, and when they were read."""

    keys: list[jwt.PyJWK]
    read_at: float


class OidcTokens:
    """Verifies tokens. For the event loop alone."""

    def __init__(
        self,
        rules: OidcRules,
        clock: Callable[[], float],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`transport` replaces the network in tests."""
        self._rules = rules
        self._clock = clock
        self._now = now
        self._transport = transport
        self._keys: _KeySet | None = None
        self._tried_at = -math.inf
        self._renewal: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()

    @staticmethod
    def has_form(token: str) -> bool:
        """Whether a text has the form of a signed token."""
        return _COMPACT.fullmatch(token) is not None

    async def key_of(self, token: str) -> AccessKey:
        """What a token allows, as a key that expires with it. Raises Unauthenticated, Forbidden if
        its claims allow nothing here, StoreUnavailable if the issuer's keys cannot be read."""
        if len(token) > MAX_TOKEN_BYTES:
            raise _refused(f"it has more than {MAX_TOKEN_BYTES:,} bytes")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as error:
            raise _refused("it cannot be read") from error
        if header.get("alg") not in ALGORITHMS:
            raise _refused(f"its algorithm is not one of {', '.join(ALGORITHMS)}")
        key = await self._signing_key(header)
        return self._allowed(self._claims(token, key, header["alg"]))

    def _claims(self, token: str, key: jwt.PyJWK, algorithm: str) -> dict[str, Any]:
        try:
            return dict(
                jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    audience=self._rules.audience,
                    issuer=self._rules.issuer,
                    leeway=LEEWAY_S,
                    options={"require": ["exp", "iss", "aud", "sub"]},
                )
            )
        except jwt.ExpiredSignatureError as error:
            raise _refused("it has expired") from error
        except jwt.ImmatureSignatureError as error:
            raise _refused("by its claim 'nbf' or 'iat' it is not valid yet") from error
        except jwt.InvalidAudienceError as error:
            raise _refused("it is for another audience") from error
        except jwt.InvalidIssuerError as error:
            raise _refused("it is of another issuer") from error
        except jwt.MissingRequiredClaimError as error:
            raise _refused(f"its claim '{error.claim}' is missing") from error
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise _refused("its signature or its claims are not valid") from error

    def _allowed(self, claims: Mapping[str, Any]) -> AccessKey:
        collections = self._collections(claims)
        values = _texts(claims, self._rules.scopes_claim)
        scopes = frozenset[Scope]().union(*(self._rules.scopes.get(one, ()) for one in values))
        if collections is not None:
            scopes -= WHOLE_SERVICE
        if not scopes:
            raise Forbidden(
                f"The token's claim '{self._rules.scopes_claim}' has no scope of this service; "
                f"it needs one of {', '.join(self._rules.scopes)}."
            )
        subject = _subject(claims)
        client = claims.get("azp") or claims.get("client_id")
        named = isinstance(client, str) and client.isprintable()
        name = f"oidc:{client}"[:80] if named else "oidc"
        try:
            ends = datetime.fromtimestamp(float(claims["exp"]) + LEEWAY_S, UTC)
        except (OverflowError, ValueError, OSError) as error:
            raise _refused("its claim 'exp' is not a time") from error
        return AccessKey(KEY_ID, name, scopes, collections, self._now(), expires_at=ends,
                         limits=self._rules.limits, subject=subject)  # fmt: skip

    def _collections(self, claims: Mapping[str, Any]) -> frozenset[str] | None:
        claim = self._rules.collections_claim
        return None if claim is None else frozenset(_texts(claims, claim))

    # --- the issuer's keys --------------------------------------------------------------------

    async def _signing_key(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        if self._age() > KEPT_S:  # none, or too old to be used while they are renewed
            await self._read()
        elif self._age() > FRESH_S and (self._renewal is None or self._renewal.done()):
            self._renewal = asyncio.create_task(self._read())
        found = self._find(header)
        if found is None:
            await self._read()
            found = self._find(header)
        if found is None:
            raise _refused("no key of the issuer has its key id and algorithm")
        return found

    def _find(self, header: Mapping[str, Any]) -> jwt.PyJWK | None:
        if self._keys is None or self._age() > KEPT_S:
            raise StoreUnavailable(
                f"The public keys of the issuer {self._rules.issuer} cannot be read, so its tokens "
                "cannot be checked. Try again in a moment.",
                {"retry_after": math.ceil(PAUSE_S)},
            )
        keys, key_id = self._keys.keys, header.get("kid")
        found = [key for key in keys if key.public_key_use in (None, "sig")]
        found = [key for key in found if key_id in (None, key.key_id)]
        found = [key for key in found if key.algorithm_name == header["alg"]]
        return found[0] if len(found) == 1 else None

    def _age(self) -> float:
        return math.inf if self._keys is None else self._clock() - self._keys.read_at

    async def _read(self) -> None:
        """Read the keys, unless that was tried less than `PAUSE_S` ago. Never raises: after a
        failure the keys that were read before are used."""
        async with self._reading:
            if self._clock() - self._tried_at < PAUSE_S:
                return
            self._tried_at = self._clock()
            try:
                self._keys = _KeySet(await self._fetched(), self._clock())
            except FAILURES as error:
                log(logging.WARNING, "the public keys of the OIDC issuer cannot be read",
                    issuer=self._rules.issuer, reason=str(error) or repr(error))  # fmt: skip

    async def _fetched(self) -> list[jwt.PyJWK]:
        async with (
            httpx.AsyncClient(
                timeout=FETCH_TIMEOUT_S, transport=self._transport, follow_redirects=False
            ) as client,
            asyncio.timeout(2 * FETCH_TIMEOUT_S),
        ):
            path = "/.well-known/openid-configuration"
            document = await _json(client, self._rules.issuer.rstrip("/") + path)
            if document.get("issuer") != self._rules.issuer:
                raise ValueError(f"the discovery document is of {document.get('issuer')!r}")
            address = document.get("jwks_uri")
            if not isinstance(address, str):
                raise ValueError("the discovery document has no jwks_uri")
            require_secure(address, "jwks_uri")
            found = (await _json(client, address)).get("keys")
        keys = [key for one in (found if isinstance(found, list) else ()) for key in _keys_of(one)]
        if not keys:
            raise ValueError(f"{address} has no key that can be used")
        return keys


async def _json(client: httpx.AsyncClient, address: str) -> dict[str, Any]:
    """The object that an address answers with. Raises httpx.HTTPError or ValueError."""
    body = bytearray()
    async with client.stream("GET", address) as answer:
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"{address} answered {answer.status_code}")
        async for piece in answer.aiter_bytes():
            body += piece
            if len(body) > MAX_DOCUMENT_BYTES:
                raise ValueError(f"{address} answered with more than {MAX_DOCUMENT_BYTES} bytes")
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError(f"{address} did not answer with a JSON object")
    return found


def _keys_of(jwk: object) -> list[jwt.PyJWK]:
    """A key for each algorithm that a JSON Web Key is for; none if it cannot be used. Without the
    member `alg`, which is optional (RFC 7517, 4.4), an RSA key is for every algorithm of RSA."""
    if not isinstance(jwk, dict):
        return []
    is_any_rsa = jwk.get("kty") == "RSA" and not jwk.get("alg")
    try:
        return [jwt.PyJWK(jwk, one) for one in (RSA_ALGORITHMS if is_any_rsa else (None,))]
    except (jwt.PyJWTError, ValueError, TypeError):
        return []


def _subject(claims: Mapping[str, Any]) -> str:
    """Who a token is of, as the audit log and limits name them. Raises Unauthenticated."""
    found = claims["sub"]
    if not isinstance(found, str) or not found or not found.isprintable():
        raise _refused("its claim 'sub' is not a text of printable characters")
    if len(found) > MAX_SUBJECT:  # cut off, two could become one
        raise _refused(f"its claim 'sub' has more than {MAX_SUBJECT} characters")
    return found


def _texts(claims: Mapping[str, Any], claim: str) -> list[str]:
    """The texts of a claim: an array, or one string with spaces. Dots lead into objects, as in
    `realm_access.roles`, unless a claim has the whole name."""
    value: Any = claims.get(claim)
    if value is None:
        value = claims
        for part in claim.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        return value.split()
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(
        f"The bearer token is not accepted: {why}. Ask its issuer for a new one."
    )
