"""Stand-ins for networks, in every Python process whose PYTHONPATH begins with this folder.

A network runs once for each shape of its input; after that it waits STANDIN_MS and
STANDIN_MS_AN_IMAGE for each image, and gives the same outputs again. So everything but the networks
is as it is, and Python's lock is the limit. With STANDIN_MS=real the networks run.

STANDIN_DEVICE=cuda: sessions on CUDA are sessions on the CPU that say they were on CUDA, and one
runs at a time in a process; STANDIN_SIZES=1,2 are the sizes of batches, of which one thread takes
care then, for a quick start. Galleries on CUDA are in the host's memory, searched by FAISS.
STANDIN_CPU_NODES: nodes that each network on CUDA says it leaves to the CPU.
STANDIN_DECODE_MS: decoding a photo holds a lock of its process for so long, as if Python did it: so
many processes can be tried on few cores.
STANDIN_LOCK_MS: decoding a photo also holds Python's lock for so long without using a core, so that
this lock alone limits a process.
"""

import ctypes
import dataclasses
import importlib.machinery
import importlib.util
import os
import sys
import threading
import time

WAIT_MS = os.environ.get("STANDIN_MS", "1")
SECONDS_AN_IMAGE = float(os.environ.get("STANDIN_MS_AN_IMAGE", "0")) / 1000
DECODE_SECONDS = float(os.environ.get("STANDIN_DECODE_MS", "0")) / 1000
LOCK_MICROSECONDS = int(float(os.environ.get("STANDIN_LOCK_MS", "0")) * 1000)
SIZES = tuple(int(size) for size in os.environ.get("STANDIN_SIZES", "").split(",") if size)
NODES = tuple(filter(None, os.environ.get("STANDIN_CPU_NODES", "").split(",")))
ON_DEVICE = os.environ.get("STANDIN_DEVICE") == "cuda"


def stand_in(module):
    """Replace the run of its networks, and CUDA."""
    device = threading.Lock()
    real_init, real_run = module.OnnxModel.__init__, module.OnnxModel.run

    def init(self, path, wanted, *arguments, **named):
        cuda = wanted is module.Device.CUDA
        real_init(self, path, module.Device.CPU if cuda else wanted, *arguments, **named)
        if cuda:
            self.provider = module.CUDA_PROVIDER
            self.cpu_nodes = NODES

    def run(self, batch):
        recorded = self.__dict__.setdefault("recorded", {})
        outputs = recorded.get(batch.shape)
        if outputs is None:
            outputs = real_run(self, batch)
            if batch.any():  # at a start networks are tried with black images
                recorded[batch.shape] = outputs
            return outputs
        seconds = float(WAIT_MS) / 1000 + SECONDS_AN_IMAGE * len(batch)
        if ON_DEVICE:
            with device:
                time.sleep(seconds)
        else:
            time.sleep(seconds)
        return list(outputs)

    if WAIT_MS != "real":
        module.OnnxModel.run = run
    if ON_DEVICE:
        module.OnnxModel.__init__ = init


def slow_down(module):
    """Replace the decoding of photos."""
    lock, real = threading.Lock(), module.PhotoDecoder.decode
    library = ctypes.PyDLL(None)  # its functions are called without releasing Python's lock

    def decode(self, *arguments, **named):
        if DECODE_SECONDS:
            with lock:
                time.sleep(DECODE_SECONDS)
        if LOCK_MICROSECONDS:
            library.usleep(LOCK_MICROSECONDS)
        return real(self, *arguments, **named)

    if DECODE_SECONDS or LOCK_MICROSECONDS:
        module.PhotoDecoder.decode = decode


def keep_rows_here(module):
    """Replace the device that galleries are searched on."""
    if ON_DEVICE:
        import host_rows  # noqa: PLC0415 (FAISS)

        module.CudaDevice = host_rows.HostDevice


def resize(module):
    """Replace the sizes of batches on CUDA."""
    if SIZES:
        policy = dataclasses.replace(module.CUDA_POLICY, batch_sizes=SIZES, owners=1)
        module.CUDA_POLICY = policy
        module.POLICIES = {**module.POLICIES, module.CUDA_PROVIDER: policy}


CHANGES = {
    "app.inference.session": stand_in,
    "app.inference.scheduler": resize,
    "app.imaging.decoder": slow_down,
    "app.index.device_rows": keep_rows_here,
}


class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        CHANGES[module.__name__](module)


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in CHANGES:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        return importlib.util.spec_from_file_location(
            name, found.origin, loader=Loader(name, found.origin)
        )


sys.meta_path.insert(0, Finder)
