"""Asks each component of a release whether it is ready. `helm test` runs this with their URLs."""

import ssl
import sys
from http import HTTPStatus
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

TIMEOUT_SECONDS = 10


def ask(url: str) -> str:
    """Return the answer of a component. Raises OSError if the component does not answer."""
    address = urlsplit(url)
    if address.scheme == "https":
        # The metrics server serves only requests of the API server, so a certificate is all that
        # others get.
        server = (address.hostname or "", address.port or 443)
        ssl.get_server_certificate(server, timeout=TIMEOUT_SECONDS)
        return "serves TLS"
    try:
        with urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            return str(answer.status)
    except HTTPError as error:
        if error.code != HTTPStatus.UNAUTHORIZED:
            raise
        # This test has no token of the operator.
        return "asks for a token"


def main(urls: list[str]) -> int:
    failed = 0
    for url in urls:
        try:
            print(f"{url}: {ask(url)}")
        except HTTPError as error:
            failed = 1
            print(f"{url} is not ready: {error.code} {error.read(1000).decode()}")
        except OSError as error:
            failed = 1
            print(f"{url} does not answer: {error}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
