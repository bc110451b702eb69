"""One published file over the network: a server on this machine takes the publisher's place."""

import hashlib

import pytest

from app.errors import PackError
from app.lab.packing.published import PublishedFile, fetch
from tests.lab.packing.conftest import Zoo

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def file(zoo: Zoo) -> PublishedFile:
    (zoo.folder / "network.pt").write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    return PublishedFile(f"{zoo.url}/network.pt", len(CONTENT), digest)


def silent(_done: int, _total: int) -> None:
    pass


def test_the_published_file(file: PublishedFile) -> None:
    seen: list[tuple[int, int]] = []
    assert fetch(file, lambda *reported: seen.append(reported)) == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_mirror(file: PublishedFile, zoo: Zoo) -> None:
    elsewhere = PublishedFile("http://127.0.0.1:9/folder/network.pt", file.size, file.sha256)
    assert fetch(elsewhere, silent, mirror=f"{zoo.url}/") == CONTENT


def test_another_file(file: PublishedFile, zoo: Zoo) -> None:
    (zoo.folder / "network.pt").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(PackError, match=r"its SHA-256 is .*, expected .* Nothing was kept"):
        fetch(file, silent)


def test_a_longer_file_is_not_read_to_its_end(file: PublishedFile, zoo: Zoo) -> None:
    (zoo.folder / "network.pt").write_bytes(CONTENT * 100)
    seen: list[int] = []
    with pytest.raises(PackError, match=r"it has more than 256,000 bytes"):
        fetch(file, lambda done, _total: seen.append(done))
    assert max(seen) <= len(CONTENT)


def test_a_cut_connection(file: PublishedFile, zoo: Zoo) -> None:
    zoo.break_after = 1000
    with pytest.raises(PackError, match=r"could not be fetched.*Nothing was kept.*install"):
        fetch(file, silent)


def test_no_such_file(file: PublishedFile, zoo: Zoo) -> None:
    (zoo.folder / "network.pt").unlink()
    with pytest.raises(PackError, match=r"could not be fetched: .*404.*models install network\.pt"):
        fetch(file, silent)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "ftp://127.0.0.1", "nowhere", "http://[", "http://a..b"]
)
def test_addresses_where_nothing_is(file: PublishedFile, url: str) -> None:
    with pytest.raises(PackError, match="could not be fetched"):
        fetch(file, silent, mirror=url)
