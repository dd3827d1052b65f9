#!/usr/bin/env bash
# Everything that only a GPU can answer, in nine minutes: the tests that need one (the CPU's results, steps that never
# wait, replayed steps equal called ones, exact resume), then the speed of each stage, its steps called and replayed.
#
#   benchmarks/gpu.sh --data DIR              writes speed.json and speed_graphs.json
#   benchmarks/gpu.sh --device cpu --quick    a check that it runs, without a GPU
#
# The options are those of benchmarks/speed.py. PYTHON=... chooses the interpreter. A part that fails stops no other.
set -uo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3); fi
cpu=0 status=0
case " $* " in *" cpu "*) cpu=1 ;; esac
part() {  # seconds, at most on a GPU, and a command
  echo "== ${*:2}"
  timeout $((cpu ? 0 : $1)) "${@:2}" || status=1
}
part 180 "$PYTHON" -m pytest -n 0 -q tests/test_cuda.py
part 200 "$PYTHON" benchmarks/speed.py "$@"
((cpu)) || part 160 "$PYTHON" benchmarks/speed.py "$@" --cuda-graphs --out speed_graphs.json
exit $status
