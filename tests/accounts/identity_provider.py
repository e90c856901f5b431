"""An identity provider for tests: makes tokens, and publishes its keys over HTTP as a real one does."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from patience import PATIENCE_SECONDS

ISSUER = "https://login.example"
AUDIENCE = "authenticated"
SECRET = "a shared secret of more than thirty-two bytes"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
ALGORITHM: dict[str, Any] = {
    "RS256": RSAAlgorithm,
    "ES256": ECAlgorithm,
    "EdDSA": OKPAlgorithm,
}


def claims(**changes: Any) -> dict[str, Any]:
    """What a good token says; a value of None leaves a claim out."""
    now = time.time()
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 300, "role": "authenticated"}
    return {name: value for name, value in (said | changes).items() if value is not None}


def shared_token(secret: str = SECRET, **changes: Any) -> str:
    """A token signed with the shared secret."""
    return jwt.encode(claims(**changes), secret, "HS256")


def make_key(algorithm: str) -> PrivateKey:
    match algorithm:
        case "RS256":
            return rsa.generate_private_key(65537, 2048)
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case _:
            return ed25519.Ed25519PrivateKey.generate()


def pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class IdentityProvider:
    """Signs with the keys it was given by `add`, and publishes those at `url`."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[str, PrivateKey]] = {}
        self.requests = 0
        self.status = 200
        self.more: list[Any] = []  # entries published beside the keys
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.requests += 1
                body = provider.document()
                self.send_response(provider.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/jwks.json"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE_SECONDS)

    def add(self, key_id: str, algorithm: str = "ES256") -> None:
        self.keys[key_id] = (algorithm, make_key(algorithm))

    def token(self, key_id: str, *, header: dict[str, Any] | None = None, **changes: Any) -> str:
        """A token signed with this key."""
        algorithm, key = self.keys[key_id]
        return jwt.encode(claims(**changes), key, algorithm, {"kid": key_id} | (header or {}))

    def document(self) -> bytes:
        published = [
            json.loads(ALGORITHM[algorithm].to_jwk(key.public_key())) | {"kid": key_id, "use": "sig", "alg": algorithm}
            for key_id, (algorithm, key) in self.keys.items()
        ]
        return json.dumps({"keys": published + self.more}).encode()
