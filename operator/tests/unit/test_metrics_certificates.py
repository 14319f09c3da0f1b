"""Tests the metrics server's own authority and certificate, and the bundle in the APIService."""

import base64
from datetime import timedelta

import pytest
from cryptography import x509

from llmservice_operator.metrics_server.certificates import LIFETIME, issue, merged_bundle
from operator_support.processes import utc_now

NOW = utc_now()
HOST = "metrics.llm.svc"


def authorities(bundle: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(base64.b64decode(bundle))


def test_a_bundle_gains_our_authority_once_and_loses_expired_ones() -> None:
    old, other, ours = issue([HOST], NOW - LIFETIME), issue([HOST], NOW), issue([HOST], NOW)
    bundle = merged_bundle(merged_bundle("", old.authority, NOW), other.authority, NOW)

    merged = merged_bundle(bundle, ours.authority, NOW + timedelta(minutes=1))

    kept = [x509.load_pem_x509_certificate(it.authority) for it in (other, ours)]
    assert authorities(merged) == kept
    assert merged_bundle(merged, ours.authority, NOW) == merged
    assert authorities(merged_bundle("bm90IFBFTQ==", ours.authority, NOW)) == kept[1:]


def test_a_certificate_is_renewed_a_day_before_it_ends() -> None:
    made = issue([HOST], NOW)
    certificate = x509.load_pem_x509_certificate(made.certificate)

    assert certificate.not_valid_after_utc - made.renew_at == pytest.approx(
        timedelta(hours=24), abs=timedelta(seconds=1)
    )
    assert certificate.not_valid_before_utc < NOW
