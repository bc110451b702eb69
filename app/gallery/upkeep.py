"""The thread that looks after a gallery."""

import logging
import threading

from app.gallery.gallery import Gallery
from app.telemetry.logs import log

ROUND_S = 1.0


class Upkeep:
    """Brings the indexes into memory, then tends them once a second until stopped.

    `ready` says that the first is done: searches before that wait for it.
    """

    def __init__(self, gallery: Gallery, seconds: float = ROUND_S) -> None:
        self.ready = False
        self._gallery = gallery
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._failing = False

    def start(self) -> None:
        """Begin, unless that was done before."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """End after the round that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if not self.ready:
                    self._gallery.prepare()
                    self.ready = True
                self._gallery.tend()
                self._failing = False
            except Exception as error:  # noqa: BLE001 (the database may be away; it comes back)
                self._complain(error)
            self._stop.wait(self._seconds)

    def _complain(self, error: Exception) -> None:
        if not self._failing:
            log(logging.WARNING, "upkeep of the gallery fails; it goes on trying", error)
        self._failing = True
