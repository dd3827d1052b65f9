"""Which scores does a reconstruction get? Their names, decimals and units, the same wherever a number is shown."""

from dataclasses import dataclass

SSIM_PASS = 0.6  # the bar for a "reasonably clear" image, which a reconstruction has to reach


@dataclass(frozen=True)
class Score:
    """How one score is called and written."""

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
