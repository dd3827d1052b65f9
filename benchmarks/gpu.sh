#!/usr/bin/env bash
# Everything that only a GPU can answer, in parts of at most 9 minutes that are started one by one:
#
#   benchmarks/gpu.sh {tests,speed,precision,whole,two_processes,train} --data DIR      leaves benchmarks/gpu/PART.json
#   benchmarks/gpu.sh page                                                             fills benchmarks/README.md
#
# A part that needs more time says so, and goes on when it is started again. `--device cpu --quick` only checks that
# all of them run. PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3); fi
exec timeout --signal=TERM --kill-after=20 540 "$PYTHON" benchmarks/gpu.py "$@"
