import resource
import sys
import threading
import time

import pytest

from app.importing.stop_check import StopCheck


@pytest.mark.skipif(sys.platform != "linux", reason="counts the context switches of a thread")
def test_the_thread_of_an_import_rests_while_it_goes_through_rows() -> None:
    """Or it would hold Python's lock as long as the system lets it."""
    stop, before = StopCheck(threading.Event(), lambda: None, 0.5), rests()
    end = time.thread_time() + 0.2  # of its own work: other processes take as much as they like
    while time.thread_time() < end:
        stop.check()
    assert rests() - before >= 40


def rests() -> int:
    """How often this thread gave up its core by itself."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
