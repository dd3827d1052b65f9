"""What does a script take? Runs it as `python` would, and writes down its times and its peak memory.

    python benchmarks/watched.py REPORT.json STARTED {end,first-step} SCRIPT [ARGUMENT...]

STARTED is the `time.time()` at which this process was started. With `first-step` the process ends when an optimiser
has done its first step. Memory is the system's own high-water mark of this process; the figure that a parent gets
from `wait4` would contain the parent's.
"""

import atexit
import json
import os
import runpy
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def peak_bytes() -> int:
    """Most memory that this process has had resident, mapped files included (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    target, started, until, script = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]
    before = time.time()
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    report = {"torch_seconds": time.time() - before, "torch_peak_bytes": peak_bytes()}

    def write() -> None:
        report["peak_bytes"] = peak_bytes()
        report["gpu_bytes"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        target.write_text(json.dumps(report))

    def after_step(*_: object) -> None:
        if "first_step_seconds" in report:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        report["first_step_at"] = time.time()
        report["first_step_seconds"] = report["first_step_at"] - started
        if until == "first-step":
            write()
            os._exit(0)  # nothing of what training would do at its end

    register_optimizer_step_post_hook(after_step)
    atexit.register(write)
    sys.argv = sys.argv[4:]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
