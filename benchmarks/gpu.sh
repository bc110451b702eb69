#!/usr/bin/env bash
# Everything that needs a GPU, in one command: tests, processes, parity, throughput, search. Prints
# tables for docs/benchmarks/gpu.md.
#
#     bash benchmarks/gpu.sh                        # on a machine with NVIDIA's driver for CUDA 13
#     bash benchmarks/gpu.sh --rows 1000000         # a smaller gallery
#     bash benchmarks/gpu.sh --device cpu --rows 20000 --quick   # what can be tried on a CPU
#     GPU_PYTHON=python3 bash benchmarks/gpu.sh     # without a network: what that Python has
#
# Each step has a limit of seconds, and the next one runs whatever became of it: time on a GPU is
# scarce. The end says which ones failed. What it printed on an H100 is in docs/benchmarks/gpu.md.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
failed=()

step() { # name, seconds, command
    local name=$1 seconds=$2 began=$SECONDS code
    shift 2
    echo "== $name"
    timeout --kill-after=10 "$seconds" "$@"
    code=$?
    echo "== $name: exit $code after $((SECONDS - began)) s"
    [ "$code" -eq 0 ] || failed+=("$name")
}

finish() {
    [ ${#failed[@]} -eq 0 ] && exit 0
    echo "failed: ${failed[*]}" >&2
    exit 1
}

export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
case " $* " in
*" --device cpu "* | *" --device=cpu "*)
    [ -x .venv/bin/python ] || make install || exit 1
    python=.venv/bin/python
    step tests 200 "$python" -m pytest -q -m "not gpu" tests/index/test_device_rows.py \
        tests/inference/remote
    step processes 200 "$python" benchmarks/processes.py --networks device --processes 2 \
        --clients 8 --generators 1 --seconds 1
    step figures 600 "$python" benchmarks/gpu.py "$@"
    finish
    ;;
esac
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi; then
    echo "There is no NVIDIA GPU here (nvidia-smi does not answer): nothing was measured." >&2
    exit 1
fi

install() {
    [ -x .venv-gpu/bin/python ] || python3 -m venv .venv-gpu || return
    local pip=(.venv-gpu/bin/python -m pip install --quiet --no-deps)
    local locked=("${pip[@]}" --require-hashes --only-binary :all:)
    "${locked[@]}" -r requirements/gpu.txt || return
    # All test modules are imported before the marked ones are chosen, so everything that tests
    # need is needed, but the CPU's engines: they own the same import names as the GPU's.
    awk '/^[a-z0-9]/ { keep = $1 !~ /^(onnxruntime|faiss-cpu)==/ } keep' requirements/dev.txt \
        >.venv-gpu/dev.txt
    "${locked[@]}" -r .venv-gpu/dev.txt || return
    "${pip[@]}" --no-build-isolation --editable .
}

python=${GPU_PYTHON:-}
if [ -z "$python" ]; then
    install || { echo "The lock cannot be installed; GPU_PYTHON names a Python that has it." >&2; exit 1; }
    python=.venv-gpu/bin/python
fi
mapfile -t tests < <(grep -rlE 'mark\.gpu|pytestmark = pytest.mark.gpu' tests --include='test_*.py')
step tests 240 "$python" -m pytest -m gpu -rA --tb=short "${tests[@]}"
processes=(benchmarks/processes.py --networks gpu --clients 128)
step processes 300 "$python" "${processes[@]}" --processes 1 2 4 8
step parity 120 "$python" benchmarks/gpu.py "$@" --parts parity networks
if "$python" -c 'import ctypes; ctypes.CDLL("libnvinfer.so.10")' 2>/dev/null; then
    step tensorrt 300 env LIKENESS_TENSORRT=1 "$python" "${processes[@]}" --processes 1 4
else
    echo "== tensorrt: its libraries are not installed"
fi
step photos 120 "$python" benchmarks/gpu.py "$@" --parts photos
step search 240 "$python" benchmarks/gpu.py "$@" --parts search
finish
