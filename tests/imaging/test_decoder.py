"""The photo decoder: memory held together, and a process for what could take long or crash."""

import io
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image as PillowImage

from app.errors import ImageTooLarge, Overloaded, UnreadableImage
from app.imaging import ImageLimits, PhotoDecoder, decoder, read_header
from app.imaging.decoder import MemoryBudget
from app.imaging.jpeg import count_scanned_samples, read_frame
from app.imaging.limits import MAX_SCANNED_SAMPLES, is_suspicious
from app.imaging.wire import DecoderChannel
from app.types import DecodedImage
from tests.waiting import PATIENCE_S, until

HEIC = (Path(__file__).parents[1] / "data" / "heic" / "plain.heic").read_bytes()


def saved(form: str, width: int, height: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    noise = PillowImage.effect_noise((width, height), 40)
    noise.convert("RGB").save(buffer, form, **options)
    return buffer.getvalue()


def scan_of_nothing(blocks: int) -> bytes:
    """A refinement scan of the first component that says "no more" for all of its blocks: 34 bytes
    that let a decoder walk over the whole picture."""
    table = b"\xff\xc4\0\x14\x10\1" + bytes(15) + b"\xe0"
    head = b"\xff\xda\0\x08\1\1\0\1\x3f\x10"
    bits = "".join(
        "0" + format(max(0, min(left, 32_767) - 16_384), "014b")
        for left in range(blocks, 0, -32_767)
    )
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return table + head + coded


def with_scans(count: int, side: int = 400) -> bytes:
    buffer = io.BytesIO()
    flat = PillowImage.new("RGB", (side, side), (90, 100, 110))
    flat.save(buffer, "JPEG", progressive=True, quality=30)
    data = buffer.getvalue()
    return data[:-2] + scan_of_nothing((-(-side // 8)) ** 2) * count + data[-2:]


@pytest.fixture
def photos() -> Iterator[PhotoDecoder]:
    photos = PhotoDecoder(ImageLimits())
    yield photos
    photos.close()


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if decodes(child)]


def decodes(child: psutil.Process) -> bool:
    try:
        return "app.imaging.process" in child.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):  # it has ended meanwhile
        return False


class TestWork:
    def test_thousands_of_scans_are_refused_before_decoding(self, photos: PhotoDecoder) -> None:
        data = with_scans(19_396)
        assert len(data) < 1_400_000
        with pytest.raises(
            ImageTooLarge, match="more scans than photos of its size have"
        ) as caught:
            photos.decode(data)
        assert caught.value.status == 413
        assert not children()

    def test_many_scans_of_a_single_pixel_are_refused_before_decoding(
        self, photos: PhotoDecoder
    ) -> None:
        pixel = saved("JPEG", 1, 1, progressive=True)
        with pytest.raises(ImageTooLarge, match="more than 16,384, or together"):
            photos.decode(pixel[:-2] + b"\xff\xda" * 16_384 + pixel[-2:])

    def test_a_usual_progressive_photo_is_not_suspicious(self) -> None:
        data = saved("JPEG", 640, 480, progressive=True, subsampling=0)
        header = read_header(data)
        assert header is not None
        assert header.frame is not None
        assert not is_suspicious(data, header)
        # Nor would the same script be for the largest photo that is accepted.
        scanned = count_scanned_samples(data, header.frame, 10**12)
        assert scanned / header.pixels * ImageLimits().max_pixels < MAX_SCANNED_SAMPLES / 2.5

    @pytest.mark.slow
    def test_many_scans_below_the_limit_are_decoded_in_a_process(
        self, photos: PhotoDecoder
    ) -> None:
        data, plain = with_scans(3_900), with_scans(0)
        assert np.array_equal(photos.decode(data).pixels, photos.decode(plain).pixels)
        assert len(children()) == 1

    def test_arithmetic_coding_is_decoded_in_a_process(self, photos: PhotoDecoder) -> None:
        # An arithmetic decoder takes any bytes for a picture.
        data = saved("JPEG", 64, 48).replace(b"\xff\xc0", b"\xff\xc9", 1)
        frame = read_frame(data)
        assert frame is not None
        assert frame.arithmetic
        assert photos.decode(data).pixels.shape == (48, 64, 3)
        assert len(children()) == 1


class TestProcess:
    def test_ordinary_photos_need_none(self, photos: PhotoDecoder) -> None:
        for form in ("JPEG", "PNG", "WEBP"):
            photos.decode(saved(form, 64, 48))
        assert not children()

    def test_it_is_kept_for_the_next_photo(
        self, photos: PhotoDecoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decoder, "IDLE_SECONDS", PATIENCE_S)
        photos.decode(HEIC)
        (first,) = children()
        photos.decode(HEIC)
        assert children() == [first]

    def test_it_ends_when_there_is_no_next_photo(
        self, photos: PhotoDecoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decoder, "IDLE_SECONDS", 0.1)
        photos.decode(HEIC)
        until(lambda: not children())
        photos.decode(HEIC)

    def test_it_ends_with_the_decoder(self, photos: PhotoDecoder) -> None:
        photos.decode(HEIC)
        assert children()
        photos.close()
        assert not children()

    def test_it_knows_nothing_of_the_service(
        self, photos: PhotoDecoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LIKENESS_ENCRYPTION_KEY", "secret")
        photos.decode(HEIC)
        (process,) = children()
        assert not [name for name in process.environ() if name.startswith("LIKENESS")]
        assert process.rlimit(psutil.RLIMIT_AS)[0] < 2 << 30
        assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        open_files = Path(f"/proc/{process.pid}/fd")
        assert {str((open_files / n).readlink()) for n in "012"} == {os.devnull}

    def test_its_death_is_a_refused_photo(
        self, photos: PhotoDecoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As of a decoder that a hostile photo makes write where it must not."""
        photos.decode(HEIC)
        (process,) = children()
        process.suspend()
        receive_photo = DecoderChannel.receive_photo

        def receive(self: DecoderChannel, limits: ImageLimits, deadline: float) -> DecodedImage:
            process.send_signal(signal.SIGSEGV)  # the photo was sent to it, and is not yet decoded
            process.resume()
            return receive_photo(self, limits, deadline)

        with monkeypatch.context() as patch:
            patch.setattr(DecoderChannel, "receive_photo", receive)
            with pytest.raises(UnreadableImage, match="damaged"):
                photos.decode(HEIC)
        assert photos.decode(HEIC).width == 96

    def test_a_photo_that_takes_too_long(self) -> None:
        photos = PhotoDecoder(ImageLimits(decode_seconds=0.01))
        with pytest.raises(UnreadableImage, match=r"within 0\.01 s"):
            photos.decode(HEIC)
        assert not children()

    def test_none_can_be_started(
        self, photos: PhotoDecoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.executable", "/nowhere/python")
        pair = socket.socketpair()
        monkeypatch.setattr(decoder, "socket", SimpleNamespace(socketpair=lambda: pair))
        with pytest.raises(Overloaded, match="No process could be started"):
            photos.decode(HEIC)
        assert [one.fileno() for one in pair] == [-1, -1], "both are closed"

    @pytest.mark.slow
    def test_memory_beyond_the_limit_is_a_refused_photo(
        self, photos: PhotoDecoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The pixels of this photo do not fit beside the libraries."""
        monkeypatch.setattr(decoder, "BYTES_PER_PIXEL", 0)
        data = saved("AVIF", 16, 16)
        assert photos.decode(data).width == 16
        photos.close()
        photos = PhotoDecoder(ImageLimits())
        large = io.BytesIO()
        PillowImage.new("RGB", (7_000, 5_600)).save(large, "AVIF", speed=10)
        with pytest.raises(UnreadableImage):
            photos.decode(large.getvalue())
        photos.close()


class TestMemory:
    def test_as_much_as_there_is(self) -> None:
        memory = MemoryBudget(100)
        with memory.hold(60, 1), memory.hold(40, 1):
            with pytest.raises(Overloaded, match="100 bytes") as caught, memory.hold(1, 0.01):
                pass
            assert caught.value.extra == {"retry_after": 1}
        with memory.hold(10_000, 1):
            pass

    def test_first_come_first_served(self) -> None:
        memory, order = MemoryBudget(100), []
        held = memory.hold(100, 1)
        held.__enter__()

        def ask(size: int) -> None:
            with memory.hold(size, PATIENCE_S):
                order.append(size)

        threads = [threading.Thread(target=ask, args=[size]) for size in (90, 20, 85)]
        for number, thread in enumerate(threads, 1):
            thread.start()
            while len(memory._waiting) < number:
                time.sleep(0.001)
        held.__exit__(None, None, None)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert order == [90, 20, 85]

    def test_one_that_gives_up_does_not_hold_up_the_rest(self) -> None:
        memory = MemoryBudget(100)
        with memory.hold(50, 1):
            with pytest.raises(Overloaded), memory.hold(60, 0.01):
                pass
            with memory.hold(50, 1):
                pass

    def test_photos_wait_for_memory(self) -> None:
        data = saved("PNG", 64, 48)
        photos = PhotoDecoder(ImageLimits(decode_bytes=1, decode_seconds=0.05))
        assert photos.decode(data).width == 64
        with photos._memory.hold(1, 1), pytest.raises(Overloaded):
            photos.decode(data)
