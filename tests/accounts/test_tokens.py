"""Tokens of an identity provider: which are good, what they say, and every way in which they can be bad."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import HMACAlgorithm, RSAAlgorithm
from jwt.warnings import InsecureKeyLengthWarning

from accounts.identity_provider import AUDIENCE, ISSUER, SECRET, IdentityProvider, claims, pem, shared_token
from safelight.accounts.token import TokenInvalid, TokenKeysUnavailable, TokenVerifier

pytestmark = pytest.mark.anyio


def by_secret(**more: Any) -> TokenVerifier:
    return TokenVerifier(audience=AUDIENCE, issuer=ISSUER, secret=SECRET, **more)


def by_keys(provider: IdentityProvider, **more: Any) -> TokenVerifier:
    return TokenVerifier(audience=AUDIENCE, issuer=ISSUER, jwks_url=provider.url, **more)


async def code_of(verifier: TokenVerifier, token: str) -> str:
    """Why a token is refused."""
    with pytest.raises(TokenInvalid) as refused:
        await verifier.verify(token)
    assert refused.value.kind == "unauthenticated"
    assert token not in refused.value.detail
    return refused.value.code


def unsigned(header: dict[str, Any], said: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(said).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


async def test_what_a_good_token_says() -> None:
    said = await by_secret().verify(shared_token())
    assert (said.issuer, said.subject, said.tier) == (ISSUER, "ada", None)
    assert said.scopes == {"read", "write"}
    assert abs(said.expires_at.timestamp() - time.time() - 300) < 5


@pytest.mark.parametrize(
    ("changes", "scopes"),
    [
        ({"scope": "openid email"}, {"read", "write"}),
        ({"scope": "openid safelight:read"}, {"read"}),
        ({"scopes": ["safelight:admin"]}, {"read", "write", "admin"}),
        ({"scope": "safelight:nonsense"}, set()),
        ({"app_metadata": {"scope": "safelight:read"}}, {"read"}),
        ({"user_metadata": {"scope": "safelight:admin"}}, {"read", "write"}),  # users can write that themselves
    ],
)
async def test_scopes_of_a_token(changes: dict[str, Any], scopes: set[str]) -> None:
    assert (await by_secret().verify(shared_token(**changes))).scopes == scopes


async def test_the_tier_of_a_token() -> None:
    assert (await by_secret().verify(shared_token(tier="pro"))).tier == "pro"
    assert (await by_secret().verify(shared_token(app_metadata={"tier": "pro"}))).tier == "pro"
    assert (await by_secret().verify(shared_token(user_metadata={"tier": "pro"}))).tier is None


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: shared_token(exp=time.time() - 60), "token_expired"),
        (lambda: shared_token(nbf=time.time() + 60), "token_not_yet_valid"),
        (lambda: shared_token(iat=time.time() + 60), "token_not_yet_valid"),
        (lambda: shared_token(aud="another"), "token_wrong_audience"),
        (lambda: shared_token(aud=None), "token_invalid"),
        (lambda: shared_token(iss="https://evil.example"), "token_wrong_issuer"),
        (lambda: shared_token(iss=None), "token_invalid"),
        (lambda: shared_token(exp=None), "token_invalid"),
        (lambda: shared_token(exp=1_515_000_000_000), "token_invalid"),  # in the year 50,000
        (lambda: shared_token(exp=10**400), "token_invalid"),
        (lambda: shared_token(exp=float("inf")), "token_invalid"),
        (lambda: shared_token(exp=float("nan")), "token_invalid"),
        (lambda: shared_token(exp=[1]), "token_invalid"),
        (lambda: shared_token(nbf=float("inf")), "token_invalid"),
        (lambda: shared_token(iat=[]), "token_invalid"),
        (lambda: shared_token(sub=None), "token_invalid"),
        (lambda: shared_token(sub=""), "token_invalid"),
        (lambda: shared_token(sub="a\0b"), "token_invalid"),
        (lambda: shared_token(sub="x" * 256), "token_invalid"),
        (lambda: shared_token("another secret of more than thirty-two bytes"), "token_invalid"),
        (lambda: shared_token()[:-4] + "AAAA", "token_invalid"),
        (lambda: "x.y.z", "token_invalid"),
        (lambda: "nonsense", "token_invalid"),
        (lambda: "a" * 20_000, "token_invalid"),
        (lambda: unsigned({"alg": "none", "typ": "JWT"}, claims()), "token_algorithm"),
        (lambda: unsigned({"alg": "None"}, claims()), "token_algorithm"),
        (lambda: unsigned({"alg": "HS256"}, claims()), "token_invalid"),
        (lambda: unsigned({}, claims()), "token_algorithm"),
        (lambda: jwt.encode(claims(), SECRET * 2, "HS512"), "token_algorithm"),
        (lambda: jwt.encode(claims(), SECRET, "HS256", {"crit": ["b64"]}), "token_invalid"),
    ],
)
async def test_bad_tokens(make: Callable[[], str], code: str) -> None:
    assert await code_of(by_secret(), make()) == code


async def test_clocks_may_differ_by_the_leeway() -> None:
    late, early = shared_token(exp=time.time() - 5), shared_token(nbf=time.time() + 5, iat=time.time() + 5)
    await by_secret().verify(late)
    await by_secret().verify(early)
    assert await code_of(by_secret(leeway_seconds=1), late) == "token_expired"
    assert await code_of(by_secret(leeway_seconds=1), early) == "token_not_yet_valid"


async def test_one_of_several_audiences_is_enough() -> None:
    await by_secret().verify(shared_token(aud=["another", AUDIENCE]))


# Published keys


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_published_keys(provider: IdentityProvider, algorithm: str) -> None:
    provider.add("one", algorithm)
    verifier = by_keys(provider)
    for _ in range(3):
        assert (await verifier.verify(provider.token("one"))).subject == "ada"
    assert provider.requests == 1
    forged = provider.token("one")
    provider.add("one", algorithm)  # another key under the same name, which nobody has fetched
    assert await code_of(verifier, provider.token("one")) == "token_invalid"
    assert (await verifier.verify(forged)).subject == "ada"


async def test_keys_are_rotated(provider: IdentityProvider) -> None:
    provider.add("old")
    verifier = by_keys(provider, refetch_seconds=0.0)
    await verifier.verify(provider.token("old"))
    provider.add("new", "RS256")
    await verifier.verify(provider.token("new"))
    await verifier.verify(provider.token("old"))
    assert provider.requests == 2
    old = provider.token("old")
    del provider.keys["old"]
    provider.add("newest")
    await verifier.verify(provider.token("newest"))
    assert await code_of(verifier, old) == "token_unknown_key"


async def test_made_up_key_ids_do_not_make_us_ask_again_and_again(provider: IdentityProvider) -> None:
    provider.add("one")
    verifier = by_keys(provider)
    await verifier.verify(provider.token("one"))
    for number in range(5):
        token = provider.token("one", header={"kid": f"made-up-{number}"})
        assert await code_of(verifier, token) == "token_unknown_key"
    assert provider.requests == 1


async def test_a_token_without_key_id_needs_a_single_key(provider: IdentityProvider) -> None:
    provider.add("one")
    verifier = by_keys(provider, refetch_seconds=0.0)
    token = jwt.encode(claims(), provider.keys["one"][1], "ES256")
    await verifier.verify(token)
    provider.add("two")
    await verifier.verify(provider.token("two"))
    assert await code_of(verifier, token) == "token_unknown_key"


async def test_a_public_key_is_no_secret(provider: IdentityProvider) -> None:
    """HS/RS confusion: an HMAC made with the public key, in any of its spellings."""
    provider.add("one", "RS256")
    _, key = provider.keys["one"]
    for both in (by_keys(provider), by_keys(provider, secret=SECRET)):
        await both.verify(provider.token("one"))
        for spelling in (pem(key), pem(key).strip(), provider.document()):
            header = {"alg": "HS256", "kid": "one"}
            signing_input = unsigned(header, claims()).rsplit(".", 1)[0]
            signature = HMACAlgorithm(HMACAlgorithm.SHA256).sign(signing_input.encode(), spelling)
            token = f"{signing_input}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"
            assert await code_of(both, token) in ("token_algorithm", "token_invalid")
        assert await code_of(both, unsigned({"alg": "none", "kid": "one"}, claims())) == "token_algorithm"
        confused = unsigned({"alg": "ES256", "kid": "one"}, claims(), b"x" * 64)
        assert await code_of(both, confused) == "token_algorithm"
    await by_keys(provider, secret=SECRET).verify(shared_token())


async def test_keys_that_are_not_for_us_are_left_out(provider: IdentityProvider) -> None:
    provider.add("good")
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505
    published = json.loads(RSAAlgorithm.to_jwk(weak.public_key()))
    secret = base64.urlsafe_b64encode(b"known to everybody, since it is published").decode()
    provider.more = [
        published | {"kid": "weak", "alg": "RS256"},
        {"kty": "oct", "k": secret, "kid": "symmetric", "alg": "HS256"},
        {"kty": "EC", "crv": "P-256", "kid": "broken", "x": "AA", "y": "AA"},
        json.loads(provider.document())["keys"][0] | {"kid": "for-encryption", "use": "enc"},
        "nonsense",
    ]
    verifier = by_keys(provider)
    await verifier.verify(provider.token("good"))
    with pytest.warns(InsecureKeyLengthWarning):
        token = jwt.encode(claims(), weak, "RS256", {"kid": "weak"})
    assert await code_of(verifier, token) == "token_unknown_key"
    symmetric = jwt.encode(claims(), base64.urlsafe_b64decode(secret), "HS256", {"kid": "symmetric"})
    assert await code_of(verifier, symmetric) == "token_algorithm"
    assert await code_of(verifier, provider.token("good", header={"kid": "for-encryption"})) == "token_unknown_key"


async def test_while_the_provider_is_away(provider: IdentityProvider) -> None:
    provider.add("one")
    provider.status = 500
    verifier = by_keys(provider, refetch_seconds=0.0)
    with pytest.raises(TokenKeysUnavailable):
        await verifier.verify(provider.token("one"))
    provider.status = 200
    await verifier.verify(provider.token("one"))
    provider.status = 500
    assert await code_of(verifier, provider.token("one", header={"kid": "new"})) == "token_unknown_key"
    await verifier.verify(provider.token("one"))  # what was known stays good
