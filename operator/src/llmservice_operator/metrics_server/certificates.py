"""Creates the metrics server's certificate authority, in memory, and its serving certificate.

The API server trusts the authorities in the APIService's caBundle. Each replica creates a separate
authority and adds it to the caBundle, so no key is stored or shared.
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(hours=48)
"""Lifetime of an authority. It is short, because the authority of a dead replica stays in the
bundle until it expires."""
RENEW_BEFORE = timedelta(hours=24)
CLOCK_SKEW = timedelta(minutes=10)
"""Longest time that the API server's clock may be behind the clock of this process."""


@dataclass(frozen=True)
class ServingCertificate:
    """A certificate for the metrics server's names, and the authority that signed it, both in
    PEM.
    """

    authority: bytes
    certificate: bytes
    key: bytes
    renew_at: datetime
    expires_at: datetime


def issue(names: Sequence[str], now: datetime) -> ServingCertificate:
    """Make a new authority and a certificate that it signs, and discard the authority's key."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    # The name is unique, so that the API server finds the right one of several authorities.
    authority_name = _name(f"llmservice metrics server {uuid.uuid4().hex[:12]}")
    authority = (
        _builder(authority_name, authority_name, authority_key, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name(names[0][:64]), authority_name, key, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    return ServingCertificate(
        authority=authority.public_bytes(serialization.Encoding.PEM),
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        renew_at=now + LIFETIME - RENEW_BEFORE,
        expires_at=now + LIFETIME,
    )


def merged_bundle(bundle: str, authority: bytes, now: datetime) -> str:
    """Return an APIService's caBundle (base64) with this authority and without expired
    authorities.
    """
    try:
        present = x509.load_pem_x509_certificates(base64.b64decode(bundle)) if bundle else []
    except ValueError:
        # A malformed bundle is unusable, so replacing it loses nothing.
        present = []
    kept = [it for it in present if it.not_valid_after_utc > now]
    ours = x509.load_pem_x509_certificate(authority)
    if ours not in kept:
        kept.append(ours)
    text = b"".join(it.public_bytes(serialization.Encoding.PEM) for it in kept)
    return base64.b64encode(text).decode()


def server_context(certificate: ServingCertificate, client_authorities: str) -> ssl.SSLContext:
    """Return the TLS settings that admit only clients with a certificate of these authorities.

    Raises ssl.SSLError when the authorities cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=client_authorities)
    # Python's ssl reads a key only from a file. No other user can read this file, and the file
    # exists only during this call.
    descriptor, path = tempfile.mkstemp()
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(certificate.certificate + certificate.key)
        context.load_cert_chain(path)
    finally:
        os.unlink(path)
    return context


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
