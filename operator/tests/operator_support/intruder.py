"""A client of the metrics server that is not the API server."""

import http.client
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Intruder:
    """Sends requests directly to a metrics server. It issues its client certificates itself."""

    trust: str
    """PEM certificate of the authority that signed the server's certificate."""
    host: str
    """Name in the server's certificate."""
    port: int
    path: str
    """Path of the requests."""
    folder: Path
    """Folder of the client certificates."""

    def ask(self, certificate: str | None, **headers: str) -> int:
        context = ssl.create_default_context(cadata=self.trust)
        if certificate is not None:
            context.load_cert_chain(certificate)
        with (
            socket.create_connection(("127.0.0.1", self.port), 10) as raw,
            context.wrap_socket(raw, server_hostname=self.host) as secured,
        ):
            connection = http.client.HTTPConnection(self.host)
            connection.sock = secured
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET", self.path, headers=named)
            return connection.getresponse().status

    def certificate(self, common_name: str, authority: str) -> str:
        """Issue a client certificate with one of the cluster's own authorities; return its path."""
        pki = Path(os.environ["KUBECONFIG"]).parent / "pki"
        signer = x509.load_pem_x509_certificate((pki / f"{authority}.crt").read_bytes())
        signing_key = serialization.load_pem_private_key(
            (pki / f"{authority}.key").read_bytes(), None
        )
        assert isinstance(signing_key, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(signer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(signer.not_valid_before_utc)
            .not_valid_after(signer.not_valid_after_utc)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
            .sign(signing_key, hashes.SHA256())
        )
        path = self.folder / f"{common_name}-{authority}.pem"
        path.write_bytes(
            made.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return str(path)
