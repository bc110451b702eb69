"""What a service and its decoder process send to one another: fixed fields, then bytes.

Nothing is unpickled: a decoder that a photo took over could otherwise take over the service.
"""

import math
import socket
import struct
import time
from dataclasses import dataclass

import numpy as np

from app.errors import ImageError, ImageTooLarge, UnreadableImage
from app.imaging.limits import ImageLimits
from app.types import DecodedImage

# Length of the file, the limits, pixels that are enough (0: all) and seconds.
_REQUEST = struct.Struct("<QQQQQd")
# Kind; rows, columns, width, height and reduction, or the length of a sentence.
_ANSWER = struct.Struct("<BQQQQQ")
_PIXELS, _UNREADABLE, _TOO_LARGE = range(3)
_MAX_SENTENCE = 1_000


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """A photo to be decoded."""

    data: bytes
    limits: ImageLimits
    enough: int | None


class DecoderChannel:
    """One end. Every call raises TimeoutError at the deadline, and EOFError when the other end is
    gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send_request(self, request: DecodeRequest, deadline: float) -> None:
        limits = request.limits
        head = _REQUEST.pack(
            len(request.data),
            limits.max_bytes,
            limits.max_pixels,
            limits.max_side,
            request.enough or 0,
            limits.decode_seconds,
        )
        self._send(head, deadline)
        self._send(request.data, deadline)

    def receive_request(self) -> DecodeRequest:
        """Waits without a deadline: the other end closes when it is done, or ends."""
        deadline = math.inf
        size, most, pixels, side, enough, seconds = _REQUEST.unpack(
            self._receive(_REQUEST.size, deadline)
        )
        data = bytes(self._receive(size, deadline))
        limits = ImageLimits(most, pixels, side, decode_seconds=seconds)
        return DecodeRequest(data, limits, enough or None)

    def send_photo(self, photo: DecodedImage, deadline: float) -> None:
        rows, columns, _ = photo.pixels.shape
        size = (photo.width, photo.height, photo.reduction)
        self._send(_ANSWER.pack(_PIXELS, rows, columns, *size), deadline)
        self._send(photo.pixels.data.cast("B"), deadline)

    def send_refusal(self, error: ImageError, deadline: float) -> None:
        kind = _TOO_LARGE if isinstance(error, ImageTooLarge) else _UNREADABLE
        sentence = error.detail.encode()[:_MAX_SENTENCE]
        self._send(_ANSWER.pack(kind, len(sentence), 0, 0, 0, 0) + sentence, deadline)

    def receive_photo(self, limits: ImageLimits, deadline: float) -> DecodedImage:
        """Raises the error that was sent, and EOFError for an answer that breaks the limits."""
        kind, rows, columns, width, height, reduction = _ANSWER.unpack(
            self._receive(_ANSWER.size, deadline)
        )
        if kind != _PIXELS:
            sentence = self._receive(min(rows, _MAX_SENTENCE), deadline).decode(errors="replace")
            raise ImageTooLarge(sentence) if kind == _TOO_LARGE else UnreadableImage(sentence)
        if not 0 < rows * columns <= width * height <= limits.max_pixels or not reduction:
            raise EOFError("the decoder's answer is not possible")
        pixels = np.empty((rows, columns, 3), np.uint8)
        self._receive_into(pixels.data.cast("B"), deadline)
        return DecodedImage(pixels, width, height, reduction)

    def close(self) -> None:
        self._socket.close()

    def _send(self, data: bytes | memoryview, deadline: float) -> None:
        self._socket.settimeout(_left(deadline))
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise EOFError from error

    def _receive(self, size: int, deadline: float) -> bytearray:
        buffer = bytearray(size)
        self._receive_into(memoryview(buffer), deadline)
        return buffer

    def _receive_into(self, buffer: memoryview, deadline: float) -> None:
        while buffer:
            self._socket.settimeout(_left(deadline))
            try:
                count = self._socket.recv_into(buffer)
            except ConnectionResetError as error:
                raise EOFError from error
            if not count:
                raise EOFError
            buffer = buffer[count:]


def _left(deadline: float) -> float | None:
    if deadline == math.inf:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
