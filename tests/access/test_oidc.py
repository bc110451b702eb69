"""Bearer tokens of an issuer that really listens, on this machine."""

import asyncio
import hmac
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

from app.access.keys import AccessKey, KeyLimits, Scope
from app.access.oidc import FRESH_S, KEPT_S, PAUSE_S, RSA_ALGORITHMS, OidcTokens
from app.access.oidc_rules import OidcRules
from app.errors import AccessKeyError, Forbidden, StoreUnavailable, Unauthenticated
from app.settings import Settings
from tests.access.conftest import Clock
from tests.access.issuer import AUDIENCE, MAKERS, Issuer


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    issuer.add("k1")
    yield issuer
    issuer.close()


def tokens_of(issuer: Issuer, clock: Clock | None = None, **settings: Any) -> OidcTokens:
    rules = OidcRules.of(Settings(oidc_issuer=issuer.url, oidc_audience=AUDIENCE, **settings))
    assert rules is not None
    time = clock or Clock()
    return OidcTokens(rules, lambda: time.seconds)


def key_of(tokens: OidcTokens, *texts: str) -> AccessKey:
    """What the last of some tokens allows."""

    async def last() -> AccessKey:
        for text in texts:
            found = await tokens.key_of(text)
        return found

    return asyncio.run(last())


def _encoded(header: dict[str, Any]) -> str:
    return jwt.utils.base64url_encode(json.dumps(header).encode()).decode()


@pytest.mark.parametrize("algorithm", MAKERS)
def test_what_a_token_allows(issuer: Issuer, algorithm: str) -> None:
    issuer.add("k2", algorithm)
    key = key_of(tokens_of(issuer), issuer.token("k2", scope="likeness:identify likeness:admin x"))
    assert key.scopes == {Scope.IDENTIFY, Scope.ADMIN}
    assert key.collections is None
    assert key.name == "oidc:entrance"
    assert key.expires_at is not None
    assert not key.usable(key.expires_at + timedelta(seconds=1))


def test_limits_of_each_subject(issuer: Issuer) -> None:
    tokens = tokens_of(issuer, oidc_requests_per_second=2.5, oidc_photos_per_day=100)
    keys = [key_of(tokens, issuer.token("k1", sub=one, azp=app)) for one in "ab" for app in "xy"]
    assert keys[0].limits == KeyLimits(requests_per_second=2.5, photos_per_day=100)
    assert len({one.limited_as for one in keys}) == 2


def test_claims_of_another_issuer_s_kind(issuer: Issuer) -> None:
    tokens = tokens_of(
        issuer, oidc_scopes_claim="realm_access.roles",
        oidc_scopes=("guards=identify", "hr=enroll", "hr=manage", "hr-lead=admin"),
        oidc_collections_claim="sites",
    )  # fmt: skip
    hr = key_of(tokens, issuer.token(scope=None, realm_access={"roles": ["hr"]}, sites=["staff"]))
    assert hr.scopes == {Scope.ENROLL, Scope.MANAGE}
    roles = {"roles": ["guards", "hr-lead", 7]}
    key = key_of(tokens, issuer.token(scope=None, realm_access=roles, sites=["staff"]))
    assert key.scopes == {Scope.IDENTIFY}  # admin concerns the whole service
    assert key.collections == {"staff"}
    without = key_of(tokens, issuer.token(scope=None, realm_access=roles))
    assert without.collections == frozenset()


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"aud": "another"}, "another audience"),
        ({"aud": None}, "'aud' is missing"),
        ({"iss": "http://127.0.0.1:1"}, "another issuer"),
        ({"sub": None}, "'sub' is missing"),
        ({"sub": ""}, "printable"),
        ({"sub": "a\nb"}, "printable"),
        ({"sub": "a" * 256}, "more than 255"),
        ({"exp": None}, "'exp' is missing"),
        ({"exp": 1}, "expired"),
        ({"exp": "soon"}, "not valid"),
        ({"exp": 2**62}, "not a time"),
        ({"exp": 1e300}, "not a time|not valid"),
        ({"nbf": 2**40}, "not valid yet"),
        ({"iat": 2**40}, "not valid yet"),
    ],
)
def test_claims_that_are_refused(issuer: Issuer, claims: dict[str, Any], why: str) -> None:
    with pytest.raises(Unauthenticated, match=why):
        key_of(tokens_of(issuer), issuer.token(**claims))


def test_a_token_without_a_scope_of_ours(issuer: Issuer) -> None:
    with pytest.raises(Forbidden, match="likeness:identify"):
        key_of(tokens_of(issuer), issuer.token(scope="openid profile"))


class TestForgery:
    def test_no_algorithm(self, issuer: Issuer) -> None:
        forged = jwt.encode(issuer.claims(), None, "none", headers={"kid": "k1"})
        with pytest.raises(Unauthenticated):
            key_of(tokens_of(issuer), forged + "AAAA")

    def test_the_public_key_as_the_secret(self, issuer: Issuer) -> None:
        public = issuer.private["k1"][1].public_key()
        raw = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        signed = issuer.token().rsplit(".", 1)[0]
        signed = signed.replace(signed.split(".")[0], _encoded({"alg": "HS256", "kid": "k1"}))
        signature = hmac.digest(raw, signed.encode(), "sha256")
        forged = f"{signed}.{jwt.utils.base64url_encode(signature).decode()}"
        with pytest.raises(Unauthenticated, match="algorithm"):
            key_of(tokens_of(issuer), forged)

    def test_another_key_under_the_same_id(self, issuer: Issuer) -> None:
        tokens = tokens_of(issuer)
        key_of(tokens, issuer.token())
        issuer.add("k1")
        with pytest.raises(Unauthenticated, match="signature"):
            key_of(tokens, issuer.token())

    def test_a_key_within_the_token(self, issuer: Issuer) -> None:
        mine = MAKERS["ES256"][0]()
        public = ECAlgorithm.to_jwk(mine.public_key(), as_dict=True)
        for header in ({"jwk": public}, {"jku": "http://127.0.0.1:1/"}):
            forged = jwt.encode(issuer.claims(), mine, "ES256", headers={"kid": "own"} | header)
            with pytest.raises(Unauthenticated):
                key_of(tokens_of(issuer), forged)

    @pytest.mark.parametrize("text", ["a.b.c", "e30.e30.e30", "eyJhbGciOiAiRVMyNTYifQ.e30.AA"])
    def test_other_texts(self, issuer: Issuer, text: str) -> None:
        assert OidcTokens.has_form(text)
        with pytest.raises(Unauthenticated):
            key_of(tokens_of(issuer), text)

    def test_one_that_is_too_long(self, issuer: Issuer) -> None:
        text = f"a.{'b' * 16_384}.c"
        assert OidcTokens.has_form(text)
        with pytest.raises(Unauthenticated, match="more than 16,384 bytes"):
            key_of(tokens_of(issuer), text)

    @pytest.mark.parametrize("text", ["lk_x", "a.b", "a.b.c.d", "a.b.c\n", "é.b.c", "x." * 9999])
    def test_texts_that_are_no_tokens(self, text: str) -> None:
        assert not OidcTokens.has_form(text)


class TestKeys:
    def test_they_are_read_once(self, issuer: Issuer, clock: Clock) -> None:
        key_of(tokens_of(issuer), *[issuer.token()] * 20)
        assert issuer.requests == ["/.well-known/openid-configuration", "/keys"]

    def test_a_new_key_of_the_issuer(self, issuer: Issuer, clock: Clock) -> None:
        tokens = tokens_of(issuer, clock)
        key_of(tokens, issuer.token())
        issuer.add("k2")
        with pytest.raises(Unauthenticated, match="key id"):
            key_of(tokens, issuer.token("k2"))  # they were read a moment ago
        clock.later(PAUSE_S)
        key_of(tokens, issuer.token("k2"))

    def test_unknown_keys_ask_the_issuer_rarely(self, issuer: Issuer, clock: Clock) -> None:
        tokens = tokens_of(issuer, clock)
        text = issuer.token()
        issuer.private = {"other": issuer.private["k1"]}
        for _ in range(30):
            clock.later(PAUSE_S / 10)
            with pytest.raises(Unauthenticated):
                key_of(tokens, text)
        assert len(issuer.requests) <= 2 * 4

    def test_an_issuer_that_is_away(self, issuer: Issuer, clock: Clock) -> None:
        tokens = tokens_of(issuer, clock)
        issuer.away = True
        with pytest.raises(StoreUnavailable, match="cannot be read"):
            key_of(tokens, issuer.token())
        issuer.away = False
        clock.later(PAUSE_S)
        key_of(tokens, issuer.token())
        issuer.away = True
        clock.later(KEPT_S - 1)
        key_of(tokens, issuer.token())
        clock.later(2)
        with pytest.raises(StoreUnavailable):
            key_of(tokens, issuer.token())

    def test_the_first_token_after_a_long_time(self, issuer: Issuer, clock: Clock) -> None:
        """The keys that are kept are too old then, and are read before it is checked."""
        tokens = tokens_of(issuer, clock)
        key_of(tokens, issuer.token())
        clock.later(KEPT_S + 1)
        key_of(tokens, issuer.token())

    def test_a_key_that_was_withdrawn(self, issuer: Issuer, clock: Clock) -> None:
        tokens, text = tokens_of(issuer, clock), issuer.token()

        async def scene() -> None:
            await tokens.key_of(text)
            issuer.private.clear()
            issuer.add("k2")
            clock.later(FRESH_S + 1)
            await tokens.key_of(text)  # begins to read the keys again
            assert tokens._renewal is not None
            await tokens._renewal
            with pytest.raises(Unauthenticated, match="key id"):
                await tokens.key_of(text)

        asyncio.run(scene())

    @pytest.mark.parametrize("algorithm", RSA_ALGORITHMS)
    def test_a_key_that_names_no_algorithm(self, issuer: Issuer, algorithm: str) -> None:
        """RFC 7517, 4.4: the member is optional, and Entra ID leaves it out."""
        issuer.add("rsa", "RS256")
        issuer.hidden = {"alg"}
        token = jwt.encode(issuer.claims(), issuer.private["rsa"][1], algorithm, {"kid": "rsa"})
        key_of(tokens_of(issuer), token)

    def test_a_key_is_for_the_algorithm_that_it_names(self, issuer: Issuer) -> None:
        issuer.add("rsa", "RS256")
        token = jwt.encode(issuer.claims(), issuer.private["rsa"][1], "PS256", {"kid": "rsa"})
        with pytest.raises(Unauthenticated, match="algorithm"):
            key_of(tokens_of(issuer), token)

    @pytest.mark.parametrize(
        "jwk",
        [
            {"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": ["RS256"]},
            {"kty": "EC", "crv": [], "x": "a", "y": "b"},
            {"kty": "OKP", "crv": "Ed25519", "x": 7},
            {"kty": "oct", "k": "AAAA"},
            {"kty": {}},
            None,
        ],
    )
    def test_keys_that_cannot_be_used(self, issuer: Issuer, jwk: Any) -> None:
        """They keep no other key from being used; alone they are as no keys."""
        issuer.others = [jwk]
        key_of(tokens_of(issuer), issuer.token())
        token = issuer.token()
        issuer.private.clear()
        with pytest.raises((StoreUnavailable, Unauthenticated)):
            key_of(tokens_of(issuer), token)

    @pytest.mark.parametrize(
        "changes",
        [
            {"issuer": "http://127.0.0.1:1"},
            {"jwks_uri": None},
            {"jwks_uri": "http://example.org/k"},
        ],
    )
    def test_a_discovery_document_that_is_wrong(
        self, issuer: Issuer, changes: dict[str, Any]
    ) -> None:
        issuer.changes = changes
        with pytest.raises(StoreUnavailable):
            key_of(tokens_of(issuer), issuer.token())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"oidc_audience": None}, "LIKENESS_OIDC_AUDIENCE"),
        ({"oidc_issuer": "http://login.example"}, "https://"),
        ({"oidc_issuer": "login.example"}, "https://"),
        ({"oidc_issuer": None}, "LIKENESS_OIDC_ISSUER is not set, but LIKENESS_OIDC_AUDIENCE"),
        ({"oidc_scopes": ("guards",)}, "guards=identify"),
        ({"oidc_scopes": ("guards=everything",)}, "'guards=everything'"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    given = {"oidc_issuer": "https://login.example", "oidc_audience": AUDIENCE} | settings
    with pytest.raises(AccessKeyError, match=message):
        OidcRules.of(Settings(**given))
