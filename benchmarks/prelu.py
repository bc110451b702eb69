"""Times recognisers with PReLU and rewritten, one thread, in turn: medians and their ratio.

python benchmarks/prelu.py NETWORK.onnx [NETWORK.onnx ...]
"""

import sys
import time
from pathlib import Path

import numpy as np

from app.lab.export import parity
from app.lab.export.graph import read_model, without_prelu

ROUNDS = 300


def main() -> None:
    """Print one line for each network."""
    for path in map(Path, sys.argv[1:]):
        source = read_model(path)
        sessions = [parity.open_session_of(one) for one in (source, without_prelu(source))]
        face = np.random.default_rng(0).uniform(-1, 1, (1, 3, 112, 112)).astype(np.float32)
        took = np.empty((ROUNDS, 2))
        for row in took:
            for place, session in enumerate(sessions):
                started = time.perf_counter()
                parity.run(session, face)
                row[place] = time.perf_counter() - started
        before, after = np.median(took, axis=0) * 1e3
        ratio = np.median(took[:, 1] / took[:, 0])
        print(f"{path.name}: {before:.1f} ms, rewritten {after:.1f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
