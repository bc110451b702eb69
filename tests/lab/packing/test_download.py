"""Published packs over the network: a local server takes the place of InsightFace's."""

import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

pytest.importorskip("insightface", reason="the insightface extra is not installed")

from app.errors import PackError
from app.inference.packs import load_pack
from app.lab.packing import download
from app.lab.packing.download import fetched
from app.lab.packing.install import install_published
from app.lab.packing.published import PublishedPack
from tests.lab.packing.conftest import Zoo

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    return tmp_path / "installed"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """InsightFace's code waits seconds between its attempts."""
    monkeypatch.setattr("insightface.gui.core.model_downloads.time.sleep", lambda _seconds: None)


def _silent(_done: int, _total: int) -> None:
    pass


@pytest.mark.slow
def test_a_published_pack_is_fetched_converted_and_served(
    zoo: Zoo, archive: Path, published: PublishedPack, installed: Path
) -> None:
    reported: list[tuple[int, int]] = []
    with fetched(
        published, installed, lambda *seen: reported.append(seen), base_url=zoo.url
    ) as folder:
        install_published(published, folder, installed, accept_license=True)
    pack = load_pack("buffalo_sc", installed)
    assert pack.recogniser.dimension == 512
    assert pack.recogniser.proven_equal_to == published.recogniser.sha256
    assert reported[-1] == (archive.stat().st_size,) * 2
    assert [path.name for path in installed.glob("[!.]*")] == ["buffalo_sc"]


def test_a_broken_connection_is_continued(
    zoo: Zoo, archive: Path, published: PublishedPack, installed: Path
) -> None:
    size = archive.stat().st_size
    zoo.break_after = size // 2
    with (
        pytest.raises(
            PackError,
            match=r"ended after .* of .* bytes, .*\.zip\.archive\.part\. Call the command again",
        ),
        fetched(published, installed, _silent, base_url=zoo.url),
    ):
        raise AssertionError("half an archive was taken for a whole one")
    with fetched(published, installed, _silent, base_url=zoo.url) as folder:
        assert (folder / published.detector.file).is_file()
    assert zoo.asked == ["", f"bytes={size // 2}-"]


def test_another_file_than_the_published_one(
    zoo: Zoo, archive: Path, published: PublishedPack, installed: Path, networks: Path
) -> None:
    (networks_copy := zoo.folder / "other").mkdir()
    other = (networks / published.detector.file).read_bytes() + b"\0"
    (networks_copy / published.detector.file).write_bytes(other)
    with pytest.raises(PackError, match=r"det_500m.onnx is not the file.*expected 5e4447"):
        install_published(published, networks_copy, installed, accept_license=True)
    assert not (installed / published.name).exists()


def test_what_is_no_archive(zoo: Zoo, published: PublishedPack, installed: Path) -> None:
    (zoo.folder / published.archive).write_text("<html>Sign in to this network</html>")
    with (
        pytest.raises(PackError, match=r"is not a complete zip file.*Check the address"),
        fetched(published, installed, _silent, base_url=zoo.url),
    ):
        pass


@pytest.mark.usefixtures("archive")
def test_two_at_a_time(zoo: Zoo, published: PublishedPack, installed: Path) -> None:
    """They would remove each other's files."""
    with fetched(published, installed, _silent, base_url=zoo.url) as folder:
        before = sorted(folder.iterdir())
        with (
            pytest.raises(PackError, match=r"Another command is fetching a pack into .*installed"),
            fetched(published, installed, _silent, base_url=zoo.url),
        ):
            pass
        assert sorted(folder.iterdir()) == before
    with fetched(published, installed, _silent, base_url=zoo.url):
        pass


MIB = 1024 * 1024
# More than any test needs to see that nobody stops it.
ENDLESS_MIB = 96


def _endless(head: str) -> Callable[[BinaryIO], None]:
    def answer(client: BinaryIO) -> None:
        client.write(f"HTTP/1.0 200 OK\r\n{head}\r\n".encode())
        for _ in range(ENDLESS_MIB):
            client.write(bytes(MIB))

    return answer


@pytest.mark.parametrize("head", ["", f"Content-Length: {ENDLESS_MIB * MIB}\r\n"])
def test_a_server_that_sends_too_much(
    head: str, zoo: Zoo, published: PublishedPack, installed: Path
) -> None:
    """Or it fills the disk that the database is on."""
    zoo.answer = _endless(head)
    seen = [0]
    with (
        pytest.raises(PackError, match=r"more than the 22,454,073 bytes .*was removed") as caught,
        fetched(published, installed, lambda done, _: seen.append(done), base_url=zoo.url),
    ):
        pass
    assert max(seen) < 23 * MIB
    part = installed / ".download" / "models" / "buffalo_sc.zip.archive.part"
    assert str(part) in caught.value.detail
    assert not [path for path in installed.rglob("*") if path.is_file() and path.stat().st_size]


def test_a_part_that_is_too_large_already(
    zoo: Zoo, published: PublishedPack, installed: Path
) -> None:
    """Earlier versions kept it."""
    part = installed / ".download" / "models" / "buffalo_sc.zip.archive.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(32 * MIB))
    zoo.answer = lambda client: client.write(
        b"HTTP/1.0 206 Partial Content\r\nContent-Range: bytes 33554432-33554435/33554436\r\n"
        b"Content-Length: 4\r\n\r\nmore"
    )
    with (
        pytest.raises(PackError, match=r"more than the 22,454,073 bytes"),
        fetched(published, installed, _silent, base_url=zoo.url),
    ):
        pass
    assert not part.exists()


def test_an_archive_that_unpacks_to_too_much(
    zoo: Zoo, published: PublishedPack, installed: Path
) -> None:
    with zipfile.ZipFile(zoo.folder / published.archive, "w", zipfile.ZIP_DEFLATED) as content:
        for network in (published.detector, published.recogniser):
            content.writestr(network.file, bytes(16 * MIB))
    with (
        pytest.raises(PackError, match=r"would unpack to 33,554,432 bytes"),
        fetched(published, installed, _silent, base_url=zoo.url),
    ):
        pass
    assert not [path for path in installed.rglob("*") if path.is_file() and path.stat().st_size]


def test_a_chunked_answer_that_ends_early(
    zoo: Zoo, archive: Path, published: PublishedPack, installed: Path
) -> None:
    """As many proxies send it."""
    whole = archive.read_bytes()

    def cut(client: BinaryIO) -> None:
        client.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.write(b"%x\r\n" % len(whole) + whole[: 3 * MIB + 100])

    zoo.answer = cut
    with (
        pytest.raises(PackError, match=r"ended after 3,145,728 bytes.*Call the command again"),
        fetched(published, installed, _silent, base_url=zoo.url),
    ):
        pass
    zoo.answer = None
    with fetched(published, installed, _silent, base_url=zoo.url) as folder:
        assert (folder / published.recogniser.file).is_file()
    assert zoo.asked == ["bytes=3145728-"]


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nzip",
        b"HTTP/1.1 302 Found\r\nLocation: http://[::/x\r\n\r\n",
    ],
    ids=["no HTTP", "long line", "no number", "no address"],
)
def test_answers_that_are_no_http(
    answer: bytes, zoo: Zoo, published: PublishedPack, installed: Path
) -> None:
    zoo.answer = lambda client: client.write(answer)
    with (
        pytest.raises(PackError, match=r"buffalo_sc.zip could not be fetched: ."),
        fetched(published, installed, _silent, base_url=zoo.url),
    ):
        pass


@pytest.mark.parametrize("url", ["mirror.example/folder", "http://127.0.0.1:port", "http://a b/"])
def test_addresses_that_are_none(url: str, published: PublishedPack, installed: Path) -> None:
    with (
        pytest.raises(PackError, match=r"buffalo_sc.zip could not be fetched: ."),
        fetched(published, installed, _silent, base_url=url),
    ):
        pass


def test_an_archive_whose_data_is_damaged(
    zoo: Zoo, archive: Path, published: PublishedPack, installed: Path
) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as content:
        for network in (published.detector, published.recogniser):
            content.writestr(network.file, bytes(range(256)) * 100)
    damaged = bytearray(archive.read_bytes())
    start = 30 + len(published.detector.file)
    damaged[start + 9 : start + 60] = b"\xff" * 51
    archive.write_bytes(damaged)
    with (
        pytest.raises(PackError, match=r"det_500m.onnx in http.* cannot be unpacked"),
        fetched(published, installed, _silent, base_url=zoo.url),
    ):
        pass
    assert not (installed / ".download").exists()


def test_no_such_archive(zoo: Zoo, published: PublishedPack, installed: Path) -> None:
    with (
        pytest.raises(PackError, match=r"HTTP 404.*likeness models install buffalo_sc.zip"),
        fetched(published, installed, _silent, base_url=zoo.url),
    ):
        pass


def test_no_network(published: PublishedPack, installed: Path) -> None:
    with (
        pytest.raises(PackError, match=r"could not be fetched.*on another machine"),
        fetched(published, installed, _silent, base_url="http://127.0.0.1:9"),
    ):
        pass


def test_no_room_is_said_before_anything_is_fetched(
    zoo: Zoo, published: PublishedPack, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "COPIES_ON_DISK", 10**9)
    with (
        pytest.raises(PackError, match=r"needs about .* MB .*Free some space"),
        fetched(published, installed, _silent, base_url=zoo.url),
    ):
        pass
    assert zoo.asked == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for part of an archive."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.chaos
def test_a_full_disk(
    zoo: Zoo,
    archive: Path,
    published: PublishedPack,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        pytest.raises(PackError, match=r"has 8 MB left"),
        fetched(published, small_disk, _silent, base_url=zoo.url),
    ):
        pass
    monkeypatch.setattr(download, "COPIES_ON_DISK", 0)  # somebody else fills it meanwhile
    with (
        pytest.raises(PackError, match=r"could not be fetched.*No space left"),
        fetched(published, small_disk, _silent, base_url=zoo.url),
    ):
        pass
    assert not (small_disk / published.name).exists()
    assert not list(small_disk.rglob("*.part"))
