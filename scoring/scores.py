"""Which scores does a reconstruction get? Their names, decimals and units, the same wherever a number is shown."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.wording import counted

SSIM_PASS = 0.6  # the bar for a "reasonably clear" image, which a reconstruction has to reach


@dataclass(frozen=True)
class Score:
    """How one score is named and written."""

    name: str
    decimals: int
    unit: str = ""

    @property
    def heading(self) -> str:
        """The name, with the unit where there is one."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def text(self, value: float | None) -> str:
        """The value without its unit; a dash for None and NaN, the score of a slice that has nothing to score."""
        return "-" if value is None or value != value else f"{value:.{self.decimals}f}"


SCORES = {  # key in metrics.json and ssim_scores.csv -> the score; `metrics.reconstruction_scores` says what each is
    "ssim": Score("SSIM", 4),
    "foreground_ssim": Score("foreground SSIM", 4),
    "gaussian_ssim": Score("Gaussian SSIM", 4),
    "psnr": Score("PSNR", 2, "dB"),
}


def score_table(metrics: Mapping) -> str:
    """The scores in metrics.json, for the terminal."""
    columns = ("mean", "std", "min", "max")
    lines = [counted(metrics["images"], "slice").ljust(17) + "".join(f"{column:>9}" for column in columns)]
    for key, score in SCORES.items():
        cells = (score.text(metrics[key][column]) for column in columns)
        lines.append(f"{score.heading:17}" + "".join(f"{cell:>9}" for cell in cells))
    ssim = metrics["ssim"]
    if metrics["empty"]:
        lines.append(f"left out of these figures: {counted(metrics['empty'], 'empty slice')}")
    lines.append(f"SSIM of {SSIM_PASS} or more: {counted(ssim['passed'], 'slice')}, {ssim['passed_share']:.1%}")
    coded = f", {metrics['entropy_coded_bytes']:,.0f} entropy-coded" if "entropy_coded_bytes" in metrics else ""
    used = (f"{one['grid']} codes, {one['codes_used']} of {one['codebook_size']} used" for one in metrics["codes"])
    listed = "; ".join(text if n == 1 else f"{n} times {text} in each" for text, n in Counter(used).items())
    return "\n".join([*lines, f"{metrics['bytes_per_image']:,.0f} bytes an image{coded}: {listed}"])
