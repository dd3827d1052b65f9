"""Two processes, by torchrun and gloo on the CPU, train one network, and go on together after an interruption."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
from conftest import ROOT

from modules import VectorQuantizer
from runtime import checkpoint

OPTIONS = ["--model=vqvae", "--epochs=1", "--batch-size=16", "--codebook-size=16", "--device=cpu", "--precision=fp32"]
OPTIONS += ["--gan=baseline", "--prior-epochs=1", "--prior-batch-size=16"]

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch has no gloo")


def launch(*arguments: object, show: Path, cache: Path) -> subprocess.CompletedProcess:
    """train.py in two processes, which leave their weights in the folder `show`."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "SHOW": str(show)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "tests" / "ranks.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_two_processes_stop_resume_and_finish_with_the_same_weights(tiny_data, tiny_cache, tmp_path):
    """Mistake 11: the ranks' codebooks drift apart."""
    out = tmp_path / "runs"
    arguments = ["--data", tiny_data, *OPTIONS, "--out", out, "--time-limit=0"]
    stopped = launch(*arguments, show=tmp_path, cache=tiny_cache)
    assert "exitcode  : 143" in stopped.stderr
    [folder] = out.glob("*/")  # one, however many processes
    assert checkpoint.load(folder / "last.pth", "run")["epoch"] == 0

    done = launch("--resume", folder, "--time-limit=1000", show=tmp_path, cache=tiny_cache)
    assert done.returncode == 0, done.stderr
    assert {"vqvae.pth", "dcgan.pth", "report.html"} <= {path.name for path in folder.iterdir()}
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    assert first.keys() == {"Autoencoder", "BaselineGenerator"}
    for name, tensor in second["Autoencoder"].items():
        torch.testing.assert_close(tensor, first["Autoencoder"][name], rtol=0, atol=0, msg=name)
    for name, tensor in second["BaselineGenerator"].items():
        if "running_" not in name:  # batch normalisation counts each process's own share
            torch.testing.assert_close(tensor, first["BaselineGenerator"][name], rtol=0, atol=0, msg=name)


def test_batches_that_cannot_be_shared_are_one_line_and_no_run(tiny_data, tiny_cache, tmp_path):
    arguments = ["--data", tiny_data, *OPTIONS, "--batch-size=9", "--out", tmp_path / "runs"]
    done = launch(*arguments, show=tmp_path, cache=tiny_cache)
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == "error: --batch-size 9 can't be shared equally by 2 processes: give a multiple"
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "runs").exists()


def steps_of_a_quantiser(rank: int, processes: int) -> dict:
    """Its state after twenty steps on this process's share of each batch, most codes dead at first."""
    torch.manual_seed(0)
    vq = VectorQuantizer(32, 3, decay=0.9)
    vq.codebooks[0, 4:] += 1000
    for step in range(20):
        batch = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        vq(batch.chunk(processes)[rank])
    return vq.state_dict()


def in_a_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(steps_of_a_quantiser(rank, 2), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_a_codebook_follows_the_latents_of_all_processes(tmp_path):
    torch.multiprocessing.spawn(in_a_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    tiny.assert_same(first, second)
    for name, tensor in steps_of_a_quantiser(0, 1).items():
        torch.testing.assert_close(first[name], tensor, atol=1e-5, rtol=1e-5)
    assert first["codebooks"].abs().max() < 10  # all dead codes were revived
