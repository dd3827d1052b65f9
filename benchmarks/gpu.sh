#!/usr/bin/env bash
# Everything that only a GPU can answer: the tests that need one, then the speed of each stage of training.
#
#   benchmarks/gpu.sh --data DIR              about 5 minutes
#   benchmarks/gpu.sh --device cpu --quick    a check that it runs, without a GPU
#
# The options are those of benchmarks/speed.py. PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3); fi
"$PYTHON" -m pytest -q tests/test_cuda.py tests/test_fake_cuda.py
exec "$PYTHON" benchmarks/speed.py "$@"
