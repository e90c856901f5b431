"""Bearer tokens (JWT) of an identity provider somewhere else: whether one is good, and what it says.

A shared secret verifies HS256 and nothing else; published keys (JWKS) verify the one algorithm that each is made for.
So the token's own header never chooses how it is verified: `none` is not among the choices, and a public key cannot be
abused as the secret of an HMAC.

Only who verifies tokens imports this module: it brings a cryptography library of 15 MB with it.
"""

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import httpx
import jwt
import orjson
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from safelight.accounts.identity import Claims, granted
from safelight.accounts.user import MAX_ISSUER, MAX_SUBJECT
from safelight.errors import SafelightError, Unavailable

REFETCH_SECONDS = 30.0  # an unknown key makes us ask again, but not more often than this
FRESH_SECONDS = 600.0  # after this the keys are fetched again, so that one withdrawn is not believed for ever
FETCH_SECONDS = 5.0
MAX_JWKS_BYTES = 256 * 1024
MAX_TOKEN_LENGTH = 16 * 1024
MIN_RSA_BITS = 2048
SHARED_ALGORITHM = "HS256"
ALGORITHMS: Mapping[tuple[Any, Any], str] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
SCOPE_PREFIX = "safelight:"

log = structlog.get_logger()


class TokenInvalid(SafelightError):
    """This token is not valid."""

    kind = "unauthenticated"
    code = "token_invalid"


class TokenExpired(TokenInvalid):
    """This token has expired. Get a new one."""

    code = "token_expired"


class TokenNotYetValid(TokenInvalid):
    """This token is not valid yet; perhaps the clocks differ."""

    code = "token_not_yet_valid"


class TokenWrongAudience(TokenInvalid):
    """This token was made for another service."""

    code = "token_wrong_audience"


class TokenWrongIssuer(TokenInvalid):
    """This token was made by somebody else than this installation trusts."""

    code = "token_wrong_issuer"


class TokenUnknownKey(TokenInvalid):
    """This token was signed with a key that its issuer does not publish."""

    code = "token_unknown_key"


class TokenAlgorithm(TokenInvalid):
    """This token is signed in a way that this installation does not accept."""

    code = "token_algorithm"


class TokenKeysUnavailable(Unavailable):
    """The keys that tokens are verified with cannot be fetched at the moment."""

    code = "token_keys_unavailable"


class TokenVerifier:
    """Verifies tokens by a shared secret, by published keys, or either, as the token is signed.

    `issuer` None accepts any: only sensible with a secret. Times are compared with `leeway_seconds` of tolerance.
    """

    def __init__(
        self,
        *,
        audience: str,
        issuer: str | None = None,
        secret: str | None = None,
        jwks_url: str | None = None,
        leeway_seconds: float = 10.0,
        refetch_seconds: float = REFETCH_SECONDS,
    ) -> None:
        self._audience = audience
        self._issuer = issuer
        self._secret = secret
        self._leeway_seconds = leeway_seconds
        self._published = None if jwks_url is None else PublishedKeys(jwks_url, refetch_seconds)

    async def verify(self, token: str) -> Claims:
        """What the token says. Raises `TokenInvalid` or one of its kinds, and `TokenKeysUnavailable`."""
        header = _header(token)
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm == SHARED_ALGORITHM and self._secret is not None:
            return self._decode(token, self._secret, SHARED_ALGORITHM)
        if self._published is None or algorithm not in ALGORITHMS.values():
            raise TokenAlgorithm(f"This token is signed with {str(algorithm)[:20]!r}; {self._accepted()}.")
        key = await self._published.find(key_id if isinstance(key_id, str) else None, str(algorithm))
        return self._decode(token, key, str(algorithm))

    def _accepted(self) -> str:
        names = [SHARED_ALGORITHM] if self._secret is not None else []
        if self._published is not None:
            names += ALGORITHMS.values()
        return f"accepted is {', '.join(names)}"

    def _decode(self, token: str, key: "str | jwt.PyJWK", algorithm: str) -> Claims:
        try:
            said = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_seconds,
                options={"require": ["exp", "sub", "aud"] + (["iss"] if self._issuer is not None else [])},
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpired from None
        except jwt.ImmatureSignatureError:
            raise TokenNotYetValid from None
        except jwt.InvalidAudienceError:
            raise TokenWrongAudience from None
        except jwt.InvalidIssuerError:
            raise TokenWrongIssuer from None
        except jwt.MissingRequiredClaimError as error:
            raise TokenInvalid(f"This token lacks the claim `{error.claim}`.") from None
        except jwt.InvalidSignatureError:
            raise TokenInvalid("The signature of this token is wrong.") from None
        except (jwt.InvalidTokenError, TypeError, ValueError, OverflowError):  # dates that are none, too
            raise TokenInvalid from None
        return _claims(said)


class PublishedKeys:
    """The keys at a JWKS URL, fetched when needed and kept. Only one request is under way at a time.

    A key that is not there may be new (rotation), so it makes us fetch again; at most every `refetch_seconds`, since
    anybody can make up key ids. While the URL does not answer, the keys known so far are good.
    """

    def __init__(self, url: str, refetch_seconds: float = REFETCH_SECONDS) -> None:
        self._url = url
        self._refetch_seconds = refetch_seconds
        self._keys: Mapping[tuple[str | None, str], jwt.PyJWK] | None = None
        self._tried_at = self._fetched_at = float("-inf")
        self._fetching = asyncio.Lock()
        self.fetches = 0

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK:
        """The key with this id for this algorithm. A token without a key id is fine while there is only one."""
        key = self._look(key_id, algorithm)
        if key is None or time.monotonic() - self._fetched_at > FRESH_SECONDS:
            await self._fetch()
            key = self._look(key_id, algorithm)
        if self._keys is None:
            raise TokenKeysUnavailable
        if key is None:
            if any(known_id == key_id for known_id, _ in self._keys):
                raise TokenAlgorithm("This token is not signed with the algorithm of the key it names.")
            raise TokenUnknownKey
        return key

    def _look(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        keys = self._keys or {}
        if key_id is not None:
            return keys.get((key_id, algorithm))
        fitting = [key for (_, of), key in keys.items() if of == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    async def _fetch(self) -> None:
        asked_at = time.monotonic()
        async with self._fetching:
            if self._tried_at > asked_at or time.monotonic() - self._tried_at < self._refetch_seconds:
                return
            self._tried_at = time.monotonic()
            self.fetches += 1
            try:
                async with asyncio.timeout(FETCH_SECONDS), httpx.AsyncClient(timeout=FETCH_SECONDS) as client:
                    self._keys = _read_keys(await _download(client, self._url))
                self._fetched_at = time.monotonic()
            except (httpx.HTTPError, TimeoutError, ValueError) as error:
                log.warning("token_keys.not_fetched", reason=f"{type(error).__name__}: {error}")
            else:
                log.info("token_keys.fetched", count=len(self._keys))


async def _download(client: httpx.AsyncClient, url: str) -> bytes:
    async with client.stream("GET", url) as response:
        response.raise_for_status()
        parts: list[bytes] = []
        size = 0
        async for part in response.aiter_bytes():
            size += len(part)
            if size > MAX_JWKS_BYTES:
                raise ValueError(f"the answer is larger than {MAX_JWKS_BYTES} bytes")
            parts.append(part)
        return b"".join(parts)


def _read_keys(data: bytes) -> dict[tuple[str | None, str], jwt.PyJWK]:
    """By id and algorithm, those that we can use; what is for encryption, weak or unknown is left out."""
    document = orjson.loads(data)
    listed: Any = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("the answer is not a JWKS document")
    keys: dict[tuple[str | None, str], jwt.PyJWK] = {}
    for entry in cast(list[dict[str, Any]], [each for each in listed if isinstance(each, dict)]):
        algorithm = ALGORITHMS.get((entry.get("kty"), entry.get("crv")))
        if algorithm is None or entry.get("use", "sig") != "sig" or entry.get("alg", algorithm) != algorithm:
            continue
        try:
            key = jwt.PyJWK(entry, algorithm)
        except jwt.PyJWTError:
            continue
        if isinstance(key.key, RSAPublicKey) and key.key.key_size < MIN_RSA_BITS:
            continue
        key_id = entry.get("kid")
        keys[key_id if isinstance(key_id, str) else None, algorithm] = key
    return keys


def _header(token: str) -> Mapping[str, Any]:
    if len(token) > MAX_TOKEN_LENGTH:
        raise TokenInvalid("This token is too long.")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        raise TokenInvalid("This is neither a key of this installation nor a token that can be read.") from None
    if "crit" in header:
        raise TokenInvalid("This token demands extensions that are not known here.")
    return header


def _claims(said: Mapping[str, Any]) -> Claims:
    issuer, subject = said.get("iss", ""), said["sub"]
    texts = isinstance(issuer, str) and isinstance(subject, str)
    if not texts or not subject or not (subject + issuer).isprintable():
        raise TokenInvalid("The claims `sub` and `iss` of this token cannot be used.")
    if len(subject) > MAX_SUBJECT or len(issuer) > MAX_ISSUER:
        raise TokenInvalid(f"The claims `sub` and `iss` of this token may have {MAX_SUBJECT} characters at most.")
    try:
        expires_at = datetime.fromtimestamp(float(said["exp"]), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        raise TokenInvalid("The claim `exp` of this token is no date that can be kept.") from None
    # `app_metadata` is where Supabase keeps what users cannot change themselves; `user_metadata` they can.
    by_provider = said.get("app_metadata")
    more: Mapping[str, Any] = by_provider if isinstance(by_provider, dict) else {}
    tier = said.get("tier", more.get("tier"))
    named = [name.removeprefix(SCOPE_PREFIX) for name in _words(said) + _words(more) if name.startswith(SCOPE_PREFIX)]
    return Claims(
        issuer=issuer,
        subject=subject,
        expires_at=expires_at,
        scopes=granted(named or ["write"]),
        tier=tier if isinstance(tier, str) else None,
    )


def _words(said: Mapping[str, Any]) -> list[str]:
    """The scopes of a token: words of `scope` (RFC 8693), or the list `scopes`."""
    scope, scopes = said.get("scope"), said.get("scopes")
    words = scope.split() if isinstance(scope, str) else []
    return words + ([each for each in scopes if isinstance(each, str)] if isinstance(scopes, list) else [])
