"""Stand-ins for networks, in every Python process whose PYTHONPATH begins with this folder.

A network runs once for each shape of its input; after that it waits STANDIN_MS and gives the same
outputs again. So everything but the networks is as it is, and Python's lock is the limit.
"""

import importlib.machinery
import importlib.util
import os
import sys
import time

TARGET = "app.inference.session"
SECONDS = float(os.environ.get("STANDIN_MS", "1")) / 1000


def stand_in(module):
    """Replace the run of its networks."""
    real = module.OnnxModel.run

    def run(self, batch):
        recorded = self.__dict__.setdefault("recorded", {})
        outputs = recorded.get(batch.shape)
        if outputs is None:
            outputs = real(self, batch)
            if batch.any():  # at a start networks are tried with black images
                recorded[batch.shape] = outputs
            return outputs
        time.sleep(SECONDS)
        return list(outputs)

    module.OnnxModel.run = run


class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        stand_in(module)


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != TARGET:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        return importlib.util.spec_from_file_location(
            name, found.origin, loader=Loader(name, found.origin)
        )


sys.meta_path.insert(0, Finder)
