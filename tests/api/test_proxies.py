"""Whose address a request is said to come from, and who may say so."""

import json
import logging
import time
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import httpx
import pytest

from app.api.proxies import MAX_HOPS, Proxies
from app.services import Services, build_services
from app.settings import Settings
from app.telemetry.logs import LOGGER_NAME, JsonFormatter
from tests.api.conftest import run_server
from tests.waiting import until

TRUSTED = Proxies([ip_network("10.0.0.0/8"), ip_network("2001:db8::/48")])
PROXY, STRANGER = "10.1.2.3", "192.0.2.66"


def client_of(peer: str, *forwarded: str, proxies: Proxies = TRUSTED) -> str:
    headers = [(b"x-forwarded-for", one.encode("latin-1")) for one in forwarded]
    scope: dict[str, Any] = {"client": (peer, 1234), "scheme": "http", "headers": headers}
    proxies.apply(scope)
    return str(scope["client"][0])


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (["192.0.2.7"], "192.0.2.7"),
        (["192.0.2.7:4711"], "192.0.2.7"),
        (["10.9.9.9, 192.0.2.7"], "192.0.2.7"),  # the first one is invented
        (["1.1.1.1, 192.0.2.7, 10.0.0.1, 10.0.0.2"], "192.0.2.7"),
        (["1.1.1.1", "192.0.2.7", "10.0.0.1"], "192.0.2.7"),  # a header each
        (["10.0.0.9, 10.0.0.1"], "10.0.0.9"),  # a client within the network of the proxies
        (["2001:db8:1::7"], "2001:db8:1::7"),
        (["[2001:db8:1::7]:4711"], "2001:db8:1::7"),
        (["192.0.2.7, 2001:DB8:0:0::1"], "192.0.2.7"),
        (["192.0.2.7, ::ffff:10.0.0.1"], "192.0.2.7"),
        (["::ffff:192.0.2.7"], "192.0.2.7"),
        ([" 192.0.2.7 , , "], "192.0.2.7"),
    ],
)
def test_what_a_trusted_proxy_says(forwarded: list[str], client: str) -> None:
    assert client_of(PROXY, *forwarded) == client


@pytest.mark.parametrize(
    "forwarded",
    [
        "",
        ",,,",
        "unknown",
        "_hidden",
        "192.0.2.7; DROP TABLE",
        "192.0.2",
        "192.0.2.7:port",
        "192.0.2.7:४२",
        "[2001:db8:1::7",
        "[2001:db8:1::7]4711",
        "fe80::1%" + "x" * 30,
        "fe80::1%eth0",
        "\x85\xa0evil",
        "1" * 60_000,
        "1.1.1.1, unknown",
    ],
)
def test_what_is_no_address_changes_nothing(forwarded: str) -> None:
    """Not even into an address before it: what is left of it may be invented."""
    assert client_of(PROXY, forwarded.encode().decode("latin-1")) == PROXY
    assert client_of(PROXY, f"1.1.1.1, {forwarded}".encode().decode("latin-1")) in (
        PROXY,
        "1.1.1.1",
    )


def test_an_unknown_entry_between_proxies() -> None:
    assert client_of(PROXY, "1.1.1.1, unknown, 10.0.0.1") == "10.0.0.1"


@pytest.mark.parametrize("peer", [STRANGER, "2001:db8:1::1", "testclient", ""])
def test_nobody_else_is_believed(peer: str) -> None:
    assert client_of(peer, "192.0.2.7") == peer


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1"])
def test_this_machine_is_not_trusted_by_itself(peer: str) -> None:
    assert client_of(peer, "192.0.2.7", proxies=Proxies()) == peer


def test_a_long_row_is_read_from_its_end_and_quickly() -> None:
    row = ", ".join(["10.0.0.1"] * 6_000)
    began = time.process_time()
    assert client_of(PROXY, f"192.0.2.7, {row}") == "10.0.0.1"
    assert time.process_time() - began < 1
    exactly = ", ".join(["10.0.0.1"] * (MAX_HOPS - 1))
    assert client_of(PROXY, f"192.0.2.7, {exactly}") == "192.0.2.7"


@pytest.mark.parametrize(
    ("peer", "said", "scheme"),
    [(PROXY, "https", "https"), (PROXY, "javascript", "http"), (PROXY, "https,http", "http"),
     (STRANGER, "https", "http")],
)  # fmt: skip
def test_the_scheme(peer: str, said: str, scheme: str) -> None:
    scope: dict[str, Any] = {
        "client": (peer, 1),
        "scheme": "http",
        "headers": [(b"x-forwarded-proto", said.encode())],
    }
    TRUSTED.apply(scope)
    assert scope["scheme"] == scheme


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return build_services(
        Settings(
            data_dir=tmp_path_factory.mktemp("service"),
            trusted_proxies=(ip_network("127.0.0.1"),),
            access_log=True,
        )
    )


@pytest.fixture(scope="module")
def client(services: Services) -> Iterator[httpx.Client]:
    with run_server(services) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    """What is logged, as JSON."""
    caplog.set_level(logging.INFO, LOGGER_NAME)
    found: list[dict[str, Any]] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(self.format(record)))

    handler, logger = Lines(), logging.getLogger(LOGGER_NAME)
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def test_the_log_and_the_audit_log_name_the_client(
    client: httpx.Client, services: Services, lines: list[dict[str, Any]]
) -> None:
    forwarded = {"X-Forwarded-For": "9.9.9.9, 192.0.2.7", "X-Forwarded-Proto": "https"}
    answer = client.post("/v1/collections", json={"name": "a"}, headers=forwarded)
    assert answer.status_code == 201
    entries, _ = services.gallery.store.audit.page(0, 100)
    (entry,) = [one for one in entries if one.members["collection"] == "a"]
    assert entry.members["client"] == "192.0.2.7"
    assert entries[0].members.get("client") is None, "what the service does by itself"
    sent = answer.headers["x-request-id"]
    (line,) = until(lambda: [one for one in lines if one.get("request_id") == sent])
    assert line["client"] == "192.0.2.7"
    answer = client.get("/v1/collections/", headers=forwarded)
    assert answer.headers["location"].startswith("https://"), "where the proxy was called"


def test_addresses_and_networks_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_TRUSTED_PROXIES", "10.0.0.1, 2001:db8::/48")
    assert Settings().trusted_proxies == (ip_network("10.0.0.1/32"), ip_network("2001:db8::/48"))
    for wrong in ("proxy.example", "10.0.0.1/8", "*"):
        monkeypatch.setenv("LIKENESS_TRUSTED_PROXIES", wrong)
        with pytest.raises(ValueError, match="trusted_proxies"):
            Settings()
