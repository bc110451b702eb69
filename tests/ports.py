"""Where tests may listen."""

import socket
from random import SystemRandom

# Below those that a system gives to clients (Linux: from 32768), so that no connection takes one
# between the choice and its use.
CHOICE = range(15_000, 30_000)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    random = SystemRandom()  # a seeded one would choose the same in every process
    while True:
        port = random.choice(CHOICE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
