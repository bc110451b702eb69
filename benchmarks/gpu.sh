#!/usr/bin/env bash
# Everything that needs a GPU, in one command: tests, parity, throughput, search. Prints tables for
# docs/benchmarks.md.
#
#     bash benchmarks/gpu.sh                        # on a machine with NVIDIA's driver for CUDA 13
#     bash benchmarks/gpu.sh --rows 1000000         # a smaller gallery
#     bash benchmarks/gpu.sh --device cpu --rows 20000 --quick   # the same code on a CPU
#
# What it printed on an H100 is in docs/benchmarks/gpu.md.
set -euo pipefail
cd "$(dirname "$0")/.."

case " $* " in
*" --device cpu "* | *" --device=cpu "*)
    [ -x .venv/bin/python ] || make install
    exec env PYTHONPATH=. .venv/bin/python benchmarks/gpu.py "$@"
    ;;
esac
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi >/dev/null; then
    echo "There is no NVIDIA GPU here (nvidia-smi does not answer): nothing was measured." >&2
    exit 1
fi
python=.venv-gpu/bin/python
[ -x "$python" ] || python3 -m venv .venv-gpu
install=("$python" -m pip install --quiet --no-deps --require-hashes --only-binary :all:)
"${install[@]}" -r requirements/gpu.txt
# All test modules are imported before the marked ones are chosen, so everything that tests need is
# needed, but the CPU's engines: they own the same import names as the GPU's.
awk '/^[a-z0-9]/ { keep = $1 !~ /^(onnxruntime|faiss-cpu)==/ } keep' requirements/dev.txt \
    >.venv-gpu/dev.txt
"${install[@]}" -r .venv-gpu/dev.txt
"$python" -m pip install --quiet --no-deps --no-build-isolation --editable .
"$python" -m pytest -m gpu
PYTHONPATH=. "$python" benchmarks/processes.py --networks gpu --processes 1 2 4 8 --clients 128
PYTHONPATH=. "$python" benchmarks/gpu.py "$@"
