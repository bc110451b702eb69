"""The indexes of a process on one device, which share its memory and one thread."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from app.index.device_rows import DeviceRows, RowDevice
from app.inference.device_memory import DeviceOutOfMemory

SCAN_TIMEOUT_S = 60.0
# An index that was searched so recently is not evicted for another: they would take turns in being
# copied to the device.
IDLE_S = 60.0


class DeviceHolder(Protocol):
    """An index that may have rows on the device."""

    @property
    def used_at(self) -> float:
        """When it was last searched, by the monotonic clock."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of the device that its rows take."""
        ...

    def release(self) -> None:
        """Free them. On the owner's thread."""
        ...


class DeviceGalleries:
    """The indexes of a process on one device. A thread of its own scans and copies."""

    def __init__(self, device: RowDevice) -> None:
        self.device = device
        self.owner = ThreadPoolExecutor(1, "gpu-index")
        # Those with rows on the device; changed on the owner's thread.
        self.holding: set[DeviceHolder] = set()

    def new_rows(self, capacity: int, dimension: int, wanted_by: DeviceHolder) -> DeviceRows:
        """Room for rows; indexes that have been idle give theirs up where it is needed. On the
        owner's thread. Raises DeviceOutOfMemory."""
        size = 2 * capacity * dimension
        while True:
            try:
                together = size + sum(one.bytes for one in self.holding)
                if together > self.device.max_bytes:
                    raise DeviceOutOfMemory(
                        f"{together} bytes of rows; {self.device.max_bytes} are allowed."
                    )
                return self.device.new_rows(capacity, dimension)
            except DeviceOutOfMemory:
                since = time.monotonic() - IDLE_S
                idle = [one for one in self.holding
                        if one is not wanted_by and one.used_at < since]  # fmt: skip
                if not idle:
                    raise
                min(idle, key=lambda one: one.used_at).release()

    def close(self) -> None:
        """Free the device."""
        self.owner.submit(self._release_all).result(SCAN_TIMEOUT_S)
        self.owner.shutdown()
        self.device.close()

    def _release_all(self) -> None:
        for one in list(self.holding):
            one.release()
