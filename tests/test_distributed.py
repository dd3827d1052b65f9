"""Two processes, by torchrun and gloo on the CPU, train the same network as one process does."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist

from networks.quantizer import VectorQuantizer, _draw, _draw_rows
from runtime import checkpoint, compute

ROOT = Path(__file__).resolve().parents[1]
QUICK = [
    "--model=vqvae",
    "--epochs=3",
    "--batch-size=16",
    "--codebook-size=16",
    "--prior-epochs=1",
    "--prior-batch-size=16",
]
QUICK += ["--device=cpu", "--precision=fp32", "--optimizer=adam"]

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch has no gloo")


def launch(processes: int, *arguments: object, show: Path, cache: Path) -> subprocess.CompletedProcess:
    show.mkdir(exist_ok=True)
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "SHOW": str(show)}
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*start, str(ROOT / "tests" / "ranks.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_data, tiny_cache):
    """{1: folder of a run in one process, 2: in two}, with what each rank held in `show` beside it."""
    folders = {}
    for processes in (1, 2):
        place = tmp_path_factory.mktemp(f"by-{processes}")
        prior = "--prior=dcgan" if processes == 2 else "--prior=none"
        arguments = ["--data", tiny_data, *QUICK, prior, "--out", place / "runs"]
        done = launch(processes, *arguments, show=place / "show", cache=tiny_cache)
        assert done.returncode == 0, done.stderr
        [folders[processes]] = (place / "runs").iterdir()  # one folder, however many processes
    return folders


def held(folder: Path, stage: str, rank: int) -> dict:
    return torch.load(folder.parents[1] / "show" / f"{stage}-{rank}.pth", weights_only=True)


@pytest.mark.parametrize("stage", ["autoencoder", "dcgan"])
def test_all_processes_hold_the_same(stage, runs):
    """Mistake 11: the ranks' codebooks drift apart. After 24 steps, revivals and k-means among them, codebooks,
    their statistics, weights and optimisers are equal to the bit."""
    first, second = (held(runs[2], stage, rank) for rank in (0, 1))
    for parts in (first, second):  # batch normalisation counts each process's own share
        for network in parts.values():
            for name in [name for name in network if "running_" in str(name)]:
                del network[name]
    tiny.assert_same(first, second)


def test_two_processes_equal_one_with_the_same_global_batch(runs):
    """Mistake 11: counts and sums are reduced, and revived codes start at the same latents."""
    one, two = (held(runs[n], "autoencoder", 0)["model"] for n in (1, 2))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_metrics_are_of_all_processes(runs):
    """Every validation slice counts once, and the losses are means over both shares of a batch."""
    tables = []
    for folder in runs.values():
        with open(folder / "metrics.csv", newline="") as file:
            tables.append([row for row in csv.DictReader(file) if row["stage"] == "autoencoder"])
    for one, two in zip(*tables, strict=True):
        for key, value in one.items():
            if key in ("validation_ssim", "train_reconstruction", "train_commitment", "perplexity_0", "codes_used_0"):
                assert float(two[key]) == pytest.approx(float(value), abs=1e-4), key


def test_stopped_and_resumed_in_two_processes(runs, tiny_data, tiny_cache, tmp_path):
    """All stop at the same step, whoever is told first; of each process's losses of that epoch nothing is lost."""
    out = tmp_path / "runs"
    arguments = ["--data", tiny_data, *QUICK, "--prior=dcgan", "--out", out, "--time-limit=0"]
    stopped = launch(2, *arguments, show=tmp_path / "show", cache=tiny_cache)
    assert stopped.returncode != 0  # torchrun turns 143 into its own
    assert "exitcode  : 143" in stopped.stderr
    [folder] = out.iterdir()
    state = checkpoint.load(folder / "last.pth", "run")
    assert (state["epoch"], state["step"]) == (0, 4)  # just before k-means
    assert {total.shape for total in state["sums"].values()} == {(2,)}
    done = launch(2, "--resume", folder, "--time-limit=1000", show=tmp_path / "show", cache=tiny_cache)
    assert done.returncode == 0, done.stderr
    tiny.assert_same_run(folder, runs[2])


@pytest.mark.parametrize("option", ["--batch-size", "--prior-batch-size"])
def test_batches_that_cannot_be_shared_are_one_line_and_no_run(option, tiny_data, tiny_cache, tmp_path):
    arguments = ["--data", tiny_data, *QUICK, "--prior=dcgan", f"{option}=9", "--out", tmp_path / "runs"]
    done = launch(2, *arguments, show=tmp_path / "show", cache=tiny_cache)
    [told] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert told == f"error: {option} 9 can't be shared equally by 2 processes: give a multiple"
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------- the parts


def two_quantisers(rank: int, folder: str) -> None:
    """Twenty steps of a quantiser on this process's half of each batch, most codes dead at first."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    vq = quantiser()
    for step in range(20):
        vq(batch(step)[4 * rank : 4 * rank + 4])
    rows = torch.arange(6.0).view(3, 2) + 100 * rank
    torch.manual_seed(7)
    drawn = _draw_rows(50, rows, torch.tensor([1.0, 0.0, 2.0]) + rank)
    mean = compute.mean(torch.tensor([1.0, 3.0 * rank]))
    made = compute.from_first(lambda: f"made by {rank}")
    torch.save([vq.state_dict(), drawn, mean, made], f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def quantiser() -> VectorQuantizer:
    torch.manual_seed(0)
    vq = VectorQuantizer(32, 3, decay=0.9)
    vq.codebook[4:] += 1000
    return vq


def batch(step: int) -> torch.Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def test_parts_over_two_processes(tmp_path):
    torch.multiprocessing.spawn(two_quantisers, (str(tmp_path),), nprocs=2)
    (first, drawn, mean, made), second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    tiny.assert_same([first, drawn, mean, made], second)

    vq = quantiser()
    for step in range(20):
        vq(batch(step))
    for name, tensor in vq.state_dict().items():
        torch.testing.assert_close(first[name], tensor, atol=1e-5, rtol=1e-5)
    assert first["codebook"].abs().max() < 10  # all were revived
    assert first["usage"].sum() == 20 * 8 * 64

    torch.manual_seed(7)
    chosen = _draw(50, torch.tensor([1.0, 0, 2, 2, 1, 3]))
    everyone = torch.cat([torch.arange(6.0).view(3, 2), 100 + torch.arange(6.0).view(3, 2)])
    assert torch.equal(drawn, everyone[chosen])
    assert mean.tolist() == [1.0, 1.5]
    assert made == "made by 0"
