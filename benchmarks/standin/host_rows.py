"""`app.index.device_rows.CudaDevice` in the host's memory, searched by FAISS."""

import faiss
import numpy as np


class HostDevice:
    """`RowDevice`; each of several processes has an equal part of the memory."""

    def __init__(self, max_bytes=None, processes=1):
        self.max_bytes = max_bytes or (1 << 30) // processes

    def new_rows(self, capacity, dimension):
        return HostRows(capacity, dimension)

    def close(self):
        pass


class HostRows:
    """`DeviceRows`."""

    def __init__(self, capacity, dimension):
        self.capacity = capacity
        self.values = np.zeros((capacity, dimension), np.float16)

    def write(self, first, rows):
        self.values[first : first + len(rows)] = rows

    def zero(self, numbers):
        self.values[numbers] = 0

    def copy(self, source, start, count, first):
        self.values[first : first + count] = source.values[start : start + count]

    def search(self, probes, count, most):
        rows = self.values[:count].astype(np.float32)
        return faiss.knn(probes.astype(np.float32), rows, most, metric=faiss.METRIC_INNER_PRODUCT)

    def free(self):
        self.values[:] = 0
