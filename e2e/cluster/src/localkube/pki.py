"""Creates the certificates of a cluster on every `up`, and the kubeconfig files that contain them.

Kubernetes needs two authorities: `ca` for the cluster, and `front-proxy-ca` for requests that the
API server passes on to an aggregated API. Their keys stay on this machine.
"""

import base64
import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_DAYS = 30
_BACKDATED = datetime.timedelta(minutes=5)
"""Time between the start of a certificate's validity and its creation, in case the clock is set
back."""

SERVICE_ACCOUNT_KEY = "sa"


@dataclass(frozen=True)
class Certificate:
    """A certificate to issue. It is valid for client and server use, because most programs need
    both.
    """

    file: str
    common_name: str
    organization: str | None = None
    names: Sequence[str] = ()
    addresses: Sequence[str] = ()
    authority: str = "ca"


class Authority:
    """A certificate authority in a folder, as FILE.crt and FILE.key."""

    def __init__(self, folder: Path, file: str, now: datetime.datetime) -> None:
        self._folder = folder
        self._now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file)])
        self._certificate = (
            self._builder(name, name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        _write(folder / file, self._certificate, self._key)

    def issue(self, wanted: Certificate) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, wanted.common_name)]
        if wanted.organization:
            attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, wanted.organization))
        builder = self._builder(
            x509.Name(attributes), self._certificate.subject, key.public_key()
        ).add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in wanted.names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(each)) for each in wanted.addresses]
        if alternatives:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=False
            )
        _write(self._folder / wanted.file, builder.sign(self._key, hashes.SHA256()), key)

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - _BACKDATED)
            .not_valid_after(self._now + datetime.timedelta(days=VALID_DAYS))
        )


def create(folder: Path, certificates: Sequence[Certificate], now: datetime.datetime) -> None:
    """Write both authorities, the certificates and the service account key pair into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    authorities = {file: Authority(folder, file, now) for file in ("ca", "front-proxy-ca")}
    for wanted in certificates:
        authorities[wanted.authority].issue(wanted)
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / f"{SERVICE_ACCOUNT_KEY}.key").write_bytes(_private(key))
    (folder / f"{SERVICE_ACCOUNT_KEY}.pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def kubeconfig(folder: Path, file: str, server: str) -> str:
    """Return a kubeconfig that contains the certificate `file` and its key, so it can be moved."""

    def inline(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "localkube",
                    "cluster": {
                        "server": server,
                        "certificate-authority-data": inline(folder / "ca.crt"),
                    },
                }
            ],
            "users": [
                {
                    "name": file,
                    "user": {
                        "client-certificate-data": inline(folder / f"{file}.crt"),
                        "client-key-data": inline(folder / f"{file}.key"),
                    },
                }
            ],
            "contexts": [{"name": "localkube", "context": {"cluster": "localkube", "user": file}}],
            "current-context": "localkube",
        },
        sort_keys=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _write(path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    path.with_suffix(".crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    path.with_suffix(".key").write_bytes(_private(key))
