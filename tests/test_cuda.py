"""What only a GPU can show: the results of the CPU, steps that never wait, the same by replay and after a resume."""

from pathlib import Path

import pytest
import tiny
import torch

import train
from dataset import Box
from inference.codec import Codec
from inference.loading import AUTOENCODERS
from runtime.compute import Compute
from training.augment import augment
from training.run import Stage
from training.settings import TrainSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CUDA, CPU = (Compute(torch.device(kind), bf16=False) for kind in ("cuda", "cpu"))
SIZE, BOX, BATCH = (64, 64), Box(16, 0, 32, 48), 4


@pytest.fixture
def no_waiting():
    """Raises where the host waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def pictures(n: int = BATCH) -> torch.Tensor:
    smooth = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(smooth, SIZE, mode="bilinear")


def autoencoder(name: str, on: Compute):
    torch.manual_seed(0)
    model = AUTOENCODERS[name](codebook_size=16)
    model.initialise_codebooks(pictures())
    return model.to(on.device, memory_format=torch.channels_last)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_pictures_are_those_of_the_cpu(name):
    slices = (255 * pictures()[:, 0]).to(torch.uint8).numpy()
    codecs = [Codec(autoencoder(name, on), {"box": BOX, "size": SIZE}, on) for on in (CPU, CUDA)]
    here, there = (codec.encode(slices, BOX) for codec in codecs)
    same = [(a == b.cpu()).float().mean() for a, b in zip(here, there, strict=True)]
    assert min(same) > 0.98  # a latent can lie between two codes
    torch.testing.assert_close(codecs[0].decode(here), codecs[1].decode(here), atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", AUTOENCODERS)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_training_step_never_waits(name, bf16, request):
    on = Compute(torch.device("cuda"), bf16)
    model = autoencoder(name, on).train()
    optimizer = train.make_optimizer(model, TrainSettings(model=name), on)
    images, stage = pictures().to(on.device), Stage(Unsaved, "autoencoder", 1, None, {}, "SSIM")
    for step in range(4):
        if step == 1:  # the first one looks for the fastest convolutions
            request.getfixturevalue("no_waiting")
        num_codes = train.draw_num_codes(BATCH, model.depth, on.device)
        augmented = augment(images, BOX, (32, 48) if step % 2 else None)
        stage.add(**train.autoencoder_step(model, optimizer, augmented, num_codes, train.LOSSES["l1+ssim"], on))


STAGES = [
    {"model": "rqvae", "painter_slices": "512", "painter_width": "8"},
    {"prior": "dcgan"},
    {"prior": "transformer"},
    {"prior": "pixelcnn"},
]


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Trainings in bf16, by sums whose order is fixed."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    training = tiny.Trainer(tmp_path, monkeypatch)
    yield lambda *flags, **given: training(
        *flags, **({"device": "cuda", "precision": "bf16", "batch_size": "4"} | given)
    )
    torch.use_deterministic_algorithms(False)


def steps(folder: Path) -> dict[str, str]:
    """What a run wrote of its steps, by file."""
    return {path.name: path.read_text() for path in folder.glob("steps_*.csv")}


@pytest.mark.parametrize("given", STAGES, ids=lambda given: "-".join(given.values()))
def test_replayed_steps_equal_called_ones(given, trainer):
    called, replayed = (trainer(*flags, **given)[1] for flags in ([], ["--cuda-graphs"]))
    assert steps(replayed) == steps(called)
    assert (replayed / "metrics.csv").read_text() == (called / "metrics.csv").read_text()


@pytest.mark.parametrize("graphs", [[], ["--cuda-graphs"]], ids=["called", "replayed"])
def test_a_resumed_run_is_exact(graphs, trainer, tmp_path, monkeypatch):
    whole = trainer(*graphs)[1]
    stopping = tiny.Trainer(tmp_path / "stopped", monkeypatch)
    stopping.kill_at_step(20)
    status, stopped = stopping(*graphs, device="cuda", precision="bf16", batch_size="4")
    assert status == 143
    assert stopping("--resume", str(stopped), *graphs)[0] == 0
    tiny.assert_same_run(whole, stopped)


class Unsaved:
    """A run that was just begun, in a process that writes nothing."""

    state, main = None, False
