"""Signing with content credentials (C2PA), and asking its own library whether a signature still holds."""

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from io import BytesIO
from typing import Any, cast

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

library: Any = c2pa
MANIFEST = {
    "claim_generator_info": [{"name": "test", "version": "1"}],
    "assertions": [
        {
            "label": "c2pa.actions.v2",
            "data": {
                "actions": [
                    {
                        "action": "c2pa.created",
                        "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
                    }
                ]
            },
        }
    ],
}


def signed(data: bytes, content_type: str) -> bytes:
    """The same file with a signed statement of its origin, by a key made here."""
    settings = library.Settings.from_json(json.dumps({"builder": {"thumbnail": {"enabled": False}}}))
    signer = library.Signer.from_info(library.C2paSignerInfo("es256", *_identity(), None))
    target = BytesIO()
    builder = library.Builder(json.dumps(MANIFEST), context=library.Context(settings))
    builder.sign(signer, content_type, BytesIO(data), target)
    return target.getvalue()


def faults_of(data: bytes, content_type: str) -> set[str]:
    """What does not hold, beside that nobody knows who signed."""
    told = json.loads(library.Reader(content_type, BytesIO(data)).json())
    assert told["active_manifest"]
    return {cast(str, one["code"]) for one in told.get("validation_status", [])} - {"signingCredential.untrusted"}


@cache
def _identity() -> tuple[bytes, bytes]:
    """A chain of certificates and the key of the first, PEM."""
    now = datetime.now(UTC)

    def certificate(name: str, key: Any, issuer: x509.Name | None, issuer_key: Any, is_ca: bool) -> x509.Certificate:
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False), critical=True
            )
        )
        if not is_ca:
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(usage, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = certificate("CA", ca_key, None, ca_key, True)
    leaf = certificate("Signer", key, ca.subject, ca_key, False)
    pem = serialization.Encoding.PEM
    chain = leaf.public_bytes(pem) + ca.public_bytes(pem)
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return chain, private
