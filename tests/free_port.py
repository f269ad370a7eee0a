"""A port for processes that a test starts."""

import os
import random
import socket
from collections.abc import Sequence

BELOW_OUTGOING = range(20000, 32768)
"""Linux gives the ports above to outgoing connections."""


def free_port(ports: Sequence[int] = BELOW_OUTGOING) -> int:
    """Return a port that nobody has, and that no other worker of pytest-xdist is given."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = ports[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("", port := random.choice(own)))
            except OSError:
                continue
            return port
