import socket

import pytest

from llmservice_server.listener import PortUnavailable, bind


def test_listens_on_ipv4_by_whatever_family_there_is() -> None:
    with bind(0) as listening:
        port = listening.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_says_which_port_is_taken() -> None:
    with bind(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortUnavailable, match=f"port {port}: .*; choose another one"):
            bind(port)
