"""How long TLS handshakes that arrive together keep the event loop, and what each costs.

    python benchmarks/tls_handshakes.py [--handshakes 300] [--rounds 5]

`api/handshake.py` and the event loop's own TLS server in turn, in one process. Needs nothing that
runs; prints medians of CPU time.
"""

import argparse
import asyncio
import contextlib
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from app.api.certificate import CertificateFiles, ServerCertificate
from app.api.connections import ConnectionLimits, Connections
from app.api.handshake import Handshake
from app.api.turns import Turns

LOOK_EVERY_S = 0.002
KEYS: dict[str, Callable[[], ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
}


def certificate(folder: Path, kind: str) -> ServerCertificate:
    """A certificate with a key of that kind, which signs itself."""
    key = KEYS[kind]()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    files = CertificateFiles(folder / f"{kind}.crt", folder / f"{kind}.key")
    files.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return ServerCertificate(files)


def first_message() -> bytes:
    """With which a client begins a handshake."""
    sent = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


async def measure(pair: ServerCertificate, count: int, *, ours: bool) -> tuple[float, float]:
    """CPU seconds: of the longest round of the event loop, and of each handshake."""
    table, turns = Connections(ConnectionLimits(most=4 * count)), Turns()
    server = await asyncio.get_running_loop().create_server(
        (lambda: Handshake(pair, table, turns, set(), _unused)) if ours else asyncio.Protocol,
        "127.0.0.1",
        0,
        ssl=None if ours else pair.context,
        backlog=2 * count,
    )
    port, longest = server.sockets[0].getsockname()[1], 0.0
    clients = asyncio.create_task(asyncio.to_thread(_begin_together, port, count))
    began = time.thread_time()
    while not clients.done():
        before = time.thread_time()
        await asyncio.sleep(LOOK_EVERY_S)
        longest = max(longest, time.thread_time() - before)
    server.close()
    return longest, (time.thread_time() - began) / count


def _unused() -> None:
    raise AssertionError("no client completes its handshake")


def _begin_together(port: int, count: int) -> None:
    message = first_message()
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)
        ]
        time.sleep(0.3)
        for one in made:
            one.sendall(message)
        time.sleep(2.0)


def main() -> None:
    """Measure with each kind of key."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--handshakes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kind in KEYS:
            pair = certificate(Path(folder), kind)
            found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
            for _ in range(given.rounds):
                for ours, times in found.items():
                    times.append(uvloop.run(measure(pair, given.handshakes, ours=ours)))
            for ours, times in found.items():
                longest, each = (1000 * statistics.median(one) for one in zip(*times, strict=True))
                print(f"{kind}, {'in turns' if ours else 'all at once'}: longest round "
                      f"{longest:.1f} ms, each handshake {each:.2f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
