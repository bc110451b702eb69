"""TLS of a service of several processes, each of which does handshakes."""

import socket
import ssl
from pathlib import Path

import pytest

from tests.certificates import Pair, make_pair
from tests.hostile.service import running
from tests.waiting import until

pytestmark = pytest.mark.chaos
CONNECTIONS = 6  # more than one for each process


def test_a_new_certificate_reaches_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.hostile.service.ADDRESS_SPACE_KIB", 40 * 2**20)
    (tmp_path / "new").mkdir()
    settings = {"LIKENESS_PROCESSES": "2", "LIKENESS_WORKERS": "1"}
    with running(tmp_path, "https", **settings) as (target, process):
        assert len(process.children()) == 2
        with target.connections(200, plain=True):  # which send nothing
            for _ in range(CONNECTIONS):
                assert target.ask("GET", "/livez").status_code == 200
        used = Pair(tmp_path / "service.crt", tmp_path / "service.key")
        new = make_pair(tmp_path / "new")
        trusted = ssl.create_default_context(cafile=new.certificate)

        def accepted() -> bool:
            try:
                with (
                    socket.create_connection(("127.0.0.1", target.port)) as plain,
                    trusted.wrap_socket(plain, server_hostname="127.0.0.1"),
                ):
                    return True
            except ssl.SSLCertVerificationError:
                return False

        assert not accepted(), "the old pair is in use"
        used.replace_by(new)
        until(lambda: all(accepted() for _ in range(CONNECTIONS)))
