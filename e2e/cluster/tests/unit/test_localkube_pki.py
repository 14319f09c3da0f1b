"""Tests the certificates: their subjects, their validity, and their authorities."""

import base64
import datetime
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from localkube import control_plane, pki
from localkube.cluster import Cluster

NOW = datetime.datetime(2030, 1, 31, 12, tzinfo=datetime.UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pki.create(tmp_path / "pki", control_plane.certificates(Cluster("c"), 2), NOW)
    return tmp_path / "pki"


def read(folder: Path, file: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{file}.crt").read_bytes())


def subject(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> list[str | bytes]:
    return [each.value for each in certificate.subject.get_attributes_for_oid(oid)]


def test_a_node_signs_in_as_a_member_of_the_nodes_and_is_found_by_name_and_address(
    folder: Path,
) -> None:
    node = read(folder, "node2")

    names = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert subject(node, NameOID.COMMON_NAME) == ["system:node:node2"]
    assert subject(node, NameOID.ORGANIZATION_NAME) == ["system:nodes"]
    assert names.get_values_for_type(x509.DNSName) == ["node2"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.200.0.2"]


def test_the_api_server_is_known_by_its_service_address_and_names(folder: Path) -> None:
    api_server = read(folder, "apiserver")

    names = api_server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}
    assert addresses == {"127.0.0.1", "10.200.0.1", "10.96.0.1"}
    assert "kubernetes.default.svc" in names.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize(
    ("file", "authority"), [("admin", "ca"), ("front-proxy", "front-proxy-ca")]
)
def test_each_authority_vouches_for_its_own(folder: Path, file: str, authority: str) -> None:
    read(folder, file).verify_directly_issued_by(read(folder, authority))


def test_certificates_are_good_from_a_little_before_now_for_a_month(folder: Path) -> None:
    admin = read(folder, "admin")

    assert admin.not_valid_before_utc < NOW
    assert admin.not_valid_after_utc == NOW + datetime.timedelta(days=30)


def test_the_keys_are_for_root_alone(folder: Path) -> None:
    assert folder.stat().st_mode & 0o077 == 0


def test_a_kubeconfig_holds_all_it_needs(folder: Path) -> None:
    config = yaml.safe_load(pki.kubeconfig(folder, "admin", "https://10.200.0.1:6443"))

    user = config["users"][0]["user"]
    assert config["clusters"][0]["cluster"]["server"] == "https://10.200.0.1:6443"
    certificate = base64.b64decode(user["client-certificate-data"])
    assert certificate == (folder / "admin.crt").read_bytes()
    assert base64.b64decode(user["client-key-data"]) == (folder / "admin.key").read_bytes()
