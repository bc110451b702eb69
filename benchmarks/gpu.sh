#!/usr/bin/env bash
# Everything that needs a GPU, in one command: tests, parity, throughput, search. Prints tables.
#
#     bash benchmarks/gpu.sh                        # on a machine with NVIDIA's driver for CUDA 13
#     bash benchmarks/gpu.sh --rows 1000000         # a smaller gallery
#
# It has not run on a GPU yet: none was at hand. `--device cpu --quick` runs the same code on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

case " $* " in
*" --device cpu "*)
    make install
    exec env PYTHONPATH=. .venv/bin/python benchmarks/gpu.py "$@"
    ;;
esac
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi >/dev/null; then
    echo "There is no NVIDIA GPU here (nvidia-smi does not answer): nothing was measured." >&2
    exit 1
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
python=.venv-gpu/bin/python
[ -x "$python" ] || python3 -m venv .venv-gpu
"$python" -m pip install --quiet --no-deps --require-hashes --only-binary :all: -r requirements/gpu.txt
# Tests and exports need a few packages more, in the versions of the development lock.
grep -E '^(pytest|httpx|hypothesis|onnx|onnxscript|pluggy|iniconfig|httpcore|sortedcontainers|ml-dtypes|onnx-ir|protobuf|psutil|scikit-image|lazy-loader|imageio|tifffile|networkx|sympy|mpmath|coloredlogs)==' \
    requirements/dev.txt | sed 's/ *\\$//; s/ *;.*//' >.venv-gpu/extra.txt
"$python" -m pip install --quiet --no-deps -r .venv-gpu/extra.txt
"$python" -m pip install --quiet --no-deps --no-build-isolation --editable . ||
    "$python" -m pip install --quiet --no-deps --editable .
"$python" -m pytest -m gpu
PYTHONPATH=. "$python" benchmarks/gpu.py "$@"
