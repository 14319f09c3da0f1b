"""Makes every library trust the certificate authorities of a mounted bundle."""

import logging
import os
import ssl
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

import certifi

from llmservice_server.failures import StartRefused, wrong_ca_bundle

logger = logging.getLogger(__name__)

_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Environment variables from which libraries take the path of the file of authorities. OpenSSL, the
hub's client and its downloader read the first one, the library `requests` reads the second one, and
clients of object stores read the third one."""


def trust_bundle(bundle: Path, environment: MutableMapping[str, str]) -> None:
    """Make this process and its children trust the bundle in addition to the public authorities.

    Libraries read the variables when they are imported or when they open a connection, so call this
    function before either. Raises StartRefused if the bundle contains no valid certificate.
    """
    try:
        certificates = _text(bundle)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificates)
    except (OSError, ValueError) as error:
        raise StartRefused(wrong_ca_bundle(str(error))) from error
    public = _text(Path(environment.get(_VARIABLES[0]) or certifi.where()))
    both = Path(tempfile.gettempdir(), f"llmservice-ca-bundle.{os.getpid()}")
    both.write_text(f"{public}\n{certificates}\n")
    environment.update(dict.fromkeys(_VARIABLES, str(both)))
    logger.info("trusting the certificate authorities in %s", bundle)


def _text(file: Path) -> str:
    """Return the certificates. Comments between them may be in any encoding."""
    return file.read_text(encoding="ascii", errors="ignore")
