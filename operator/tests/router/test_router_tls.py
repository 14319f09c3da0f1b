"""TLS between clients and the router."""

import datetime
import ssl
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from router_support.pod import Pod, replicas_of, settings_of
from router_support.replicas import running
from shared_support.waiting import eventually


def _write_certificate(folder: Path, name: str) -> None:
    """Replace the certificate as the kubelet does: by a link to a new folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC))
        .sign(key, hashes.SHA256())
    )
    data = folder / f"..{name}"
    data.mkdir()
    pem = serialization.Encoding.PEM
    (data / "tls.crt").write_bytes(certificate.public_bytes(pem))
    (data / "tls.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    link = folder / "..data_tmp"
    link.symlink_to(data.name)
    link.replace(folder / "..data")
    for file in ("tls.crt", "tls.key"):
        if not (folder / file).is_symlink():
            (folder / file).symlink_to(f"..data/{file}")


async def test_a_renewed_certificate_is_used_without_a_restart(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    secret = tmp_path_factory.mktemp("tls")
    _write_certificate(secret, "first")
    pod = Pod(settings_of(tmp_path_factory.mktemp("pod"), tls_directory=secret))
    replicas = replicas_of(1)
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

    def shown() -> str:
        pem = ssl.get_server_certificate(("127.0.0.1", pod.settings.client_port))
        subject = x509.load_pem_x509_certificate(pem.encode()).subject
        return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    pod.start()
    try:
        async with (
            running(*replicas),
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as client,
        ):
            await pod.tell(replicas)
            await pod.ready(replicas)
            async with client.post(f"{pod.url}/v1/completions", json={}) as response:
                assert response.status == 200
            assert shown() == "first"
            _write_certificate(secret, "second")
            eventually(lambda: shown() == "second")
    finally:
        pod.stop()
