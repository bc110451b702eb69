#!/bin/bash
# How throughput grows with processes, on a machine with many cores and no network, in 150 s:
#     PYTHONPATH=/folder/of/the/dependencies bash benchmarks/processes.sh
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec timeout 150 "${PYTHON:-python3}" benchmarks/processes.py --processes 1 2 4 8 --clients 64 \
    --generators 4 --seconds 4 --networks stand-in real "$@"
