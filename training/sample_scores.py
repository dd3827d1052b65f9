"""How good are the samples of a GAN that learns? By their distance from validation people."""

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

from inference.codec import Codec, to_uint8
from modules import Codes
from training.codes import EncodedSplit
from training.run import Run

if TYPE_CHECKING:
    from scoring.judge import Judge

DIVERGENCE = 10  # times the best distance from validation people: a GAN doesn't recover from that


def score_samples(samples: Codes, encoded: EncodedSplit, codec: Codec, judge: "Judge") -> dict[str, float]:
    """Frechet distances from validation people, and the mean distance of the code histograms from training's."""
    from scoring.metrics import code_histogram_distance

    distances = judge.frechet(to_uint8(codec.paint(samples, range(len(samples[0])))))
    histograms = [
        code_histogram_distance(sampled, real.long(), size)
        for sampled, real, size in zip(samples, encoded.codes, codec.autoencoder.codebook_sizes, strict=False)
    ]
    row = {f"frechet_{space}": distance for space, distance in distances.items()}
    return row | {"histogram_distance": sum(histograms) / len(histograms)}


def frechet_distance(row: Mapping[str, float]) -> float:
    """The geometric mean, over feature spaces, of an epoch's Frechet distances."""
    return statistics.geometric_mean(value for key, value in row.items() if key.startswith("frechet_"))


def diverged(run: Run) -> bool:
    """Whether the last of the GAN's epochs was `DIVERGENCE` times as far from validation people as the best."""
    distances = [frechet_distance(row) for row in run.rows_of("dcgan")]
    if not distances or distances[-1] <= DIVERGENCE * min(distances):
        return False
    run.log(
        f"dcgan diverged: its samples are {DIVERGENCE} times as far from validation people as the best, "
        "which dcgan.pth keeps; stopping. A larger --gan-gamma or a smaller --prior-lr prevents it"
    )
    return True
