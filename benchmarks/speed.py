"""How fast is it? Every stage beside the plain way of doing it, and beside what the machine could do.

    python benchmarks/speed.py --data DIR                      all stages, tables and speed.json
    python benchmarks/speed.py --data DIR --growth             time and memory of an epoch, 1,000 to 8,000 slices
    python benchmarks/speed.py --data DIR --second-start       from `python train.py` to the first training step
    python benchmarks/speed.py --data DIR --both-precisions    SSIM after the same training in bf16 and fp32
    python benchmarks/speed.py --data demo --quick             a check of the benchmark itself; no figures to quote

On two cores without a GPU all stages take about 6 minutes, --growth 2, --second-start 1, and --both-precisions with
--images 1024 --epochs 2 about 2 for each of its --rounds.
The plain way is benchmarks/plain.py. benchmarks/README.md says what each stage measures.
"""

import csv
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dataset
from benchmarks import measure
from benchmarks.measure import Ledger, Machine, Measured, Way
from benchmarks.stages import STAGES, Bench, SpeedSettings
from benchmarks.tables import markdown
from dataset import PUBLISHED
from reading import demo, places
from reading.listing import SPLITS, scan
from runtime import cli, compute
from runtime.compute import Compute
from runtime.errors import InputError, exit_on_input_error

GROWTH = (1000, 2000, 4000, 8000)  # training slices
QUICK = {"images": 8, "batch_size": 2, "steps": 1, "rounds": 1, "samples": 2, "codes": 1}
QUICK |= {"epochs": 1, "prior_epochs": 0}
ALONE = "--prior", "none", "--painter-slices", 0  # the autoencoder, and nothing after it


# ------------------------------------------------------------------------------------------- measuring


def measure_stage(bench: Bench, name: str, machine: Machine) -> dict[str, dict]:
    """All measurements of a stage, for JSON."""
    torch.manual_seed(0)
    held = measure.in_use(bench.device)
    results = {}
    for title, ways in STAGES[name](bench).items():
        ledgers = {}
        for which, way in ways.items():
            with Ledger() as ledgers[which]:  # the warm-up, too
                way.run()
        measured = measure.in_turn(ways, bench.args.rounds, bench.device, held)
        results[title] = {
            which: measured[which].plain() | limits(machine, ledgers[which], way, measured[which])
            for which, way in ways.items()
        }
        print(f"{title}: " + ", ".join(f"{w} {m.rate():.1f} images/s" for w, m in measured.items()), flush=True)
    return results


def limits(machine: Machine, ledger: Ledger, way: Way, measured: Measured) -> dict[str, float]:
    """Operations and bytes an image, what the machine could do with them, and the share of that reached."""
    seconds = machine.limit(ledger, way.moved)
    if not seconds:
        return {}
    return {
        "operations_per_image": sum(ledger.operations.values()) / way.images,
        "bytes_per_image": (ledger.bytes + way.moved) / way.images,
        "limit_images_per_second": way.images / seconds,
        "share_of_limit": seconds / statistics.median(measured.seconds),
    }


def measure_whole(bench: Bench) -> dict[str, dict]:
    """Both trainings as a user starts them, a process each: decoding and validation included, no cache at first."""
    args, ways = bench.args, {"plain": [], "ours": []}
    shared = ["--data", bench.data.root, "--batch-size", args.batch_size, "--device", bench.device.type]
    shared += ["--epochs", args.epochs]
    ours = ["--model", "vqvae", "--gan", "baseline", "--out", bench.folder / "runs", "--precision", args.precision]
    ours += ["--prior-epochs", args.prior_epochs] if args.prior_epochs else ["--prior", "none"]
    commands = {
        "plain": ["benchmarks/plain.py", *shared, "--prior-epochs", args.prior_epochs, "--workers", args.workers],
        "ours": ["train.py", *shared, *ours],
    }
    for _ in range(args.rounds):
        for which, command in commands.items():
            fresh = Path(tempfile.mkdtemp(dir=bench.folder))
            ways[which].append(measure.run_script(list(map(str, command)), bench.folder, fresh))
            shutil.rmtree(fresh)
    passes = len(bench.paths("train")) * (args.epochs + args.prior_epochs)
    result = {}
    for which, children in ways.items():
        over_torch = max(child.peak_bytes - child.torch_peak_bytes for child in children)
        row = Measured(passes, [child.seconds for child in children], over_torch).plain()
        result[which] = row | {"gpu_bytes": max(child.gpu_bytes for child in children)}
    return {f"whole training, {args.epochs} + {args.prior_epochs} epochs": result}


# ------------------------------------------------------------------------------------------- other questions


def growth(args: SpeedSettings, source: Path, folder: Path, on: Compute) -> list[dict]:
    """Seconds of an epoch of the course baseline's VQ-VAE, validation and saving included; peak memory; by set."""
    rows = []
    for images in GROWTH if not args.quick else (QUICK["images"], 2 * QUICK["images"]):
        home = folder / f"{images}"
        root = measure.repeated_set(source, home / "slices", published_shares(images))
        command = ["train.py", "--data", root, "--model", "vqvae", "--prior", "none", "--epochs", 1]
        command += ["--out", home / "runs", "--device", on.device.type, "--batch-size", args.batch_size]
        command += ["--precision", args.precision]
        child = measure.run_script(list(map(str, command)), folder, home / "cache")
        (end,) = (last.stat().st_mtime for last in (home / "runs").glob("*/last.pth"))  # written when an epoch ends
        row = {"images": images, "seconds_per_epoch": end - child.first_step_at}
        row["peak_bytes"] = child.peak_bytes - child.torch_peak_bytes
        row["data_bytes"] = sum(path.stat().st_size for path in (home / "cache").rglob("*.npy"))
        row["gpu_bytes"] = child.gpu_bytes
        rows.append(row)
        print(f"{images} slices: {row['seconds_per_epoch']:.1f} s an epoch", flush=True)
        shutil.rmtree(home)
    return rows


def second_start(args: SpeedSettings, source: Path, folder: Path, on: Compute) -> dict:
    """From the start of train.py, default autoencoder, to the end of its first step, with the cache already there."""
    counts = published_shares(PUBLISHED["train"][0] if not args.quick else QUICK["images"])
    root = measure.repeated_set(source, folder / "slices", counts)
    command = ["train.py", "--data", root, *ALONE, "--out", folder / "runs", "--device", on.device.type]
    command = list(map(str, [*command, "--precision", args.precision]))
    starts = [measure.run_script(command, folder, folder / "cache", "first-step") for _ in range(1 + args.rounds)]
    first, *again = starts
    return {
        "images": counts["train"],
        "first_start_seconds": first.first_step_seconds,
        "second_start_seconds": [child.first_step_seconds for child in again],
        "importing_torch_seconds": [child.torch_seconds for child in again],
        "beyond_torch_seconds": [child.first_step_seconds - child.torch_seconds for child in again],
        "torch_peak_bytes": max(child.torch_peak_bytes for child in again),
        "peak_bytes": max(child.peak_bytes for child in again),
        "gpu_bytes": max(child.gpu_bytes for child in again),
    }


def both_precisions(args: SpeedSettings, source: Path, folder: Path, on: Compute) -> list[dict]:
    """SSIM after train.py's autoencoder has seen the same slices in bf16 and in fp32, and the time: a seed a round."""
    if not on.bf16:
        raise InputError("--both-precisions: there is no bf16 arithmetic here, or --precision fp32 was given")
    root = measure.repeated_set(source, folder / "slices", published_shares(args.images))
    rows = []
    for seed in range(args.rounds):
        for precision in ("bf16", "fp32"):
            out = folder / f"{precision}_{seed}"
            command = ["train.py", "--data", root, *ALONE, "--epochs", args.epochs, "--out", out]
            command += ["--device", on.device.type, "--precision", precision, "--seed", seed]
            child = measure.run_script(list(map(str, command)), folder, folder / "cache")
            (table,) = out.glob("*/metrics.csv")
            rows_of_run = csv.DictReader(table.read_text().splitlines())
            *_, last = (row for row in rows_of_run if row["stage"] == "autoencoder")
            row = {"seed": seed, "precision": precision, "images": args.epochs * args.images}
            rows.append(row | {"validation_ssim": float(last["validation_ssim"]), "seconds": child.seconds})
            print(f"{precision}, seed {seed}: SSIM {rows[-1]['validation_ssim']:.4f}", flush=True)
    return rows


def published_shares(images: int) -> dict[str, int]:
    """Splits of the published set's proportions with `images` training slices."""
    return {split: max(images * PUBLISHED[split][0] // PUBLISHED["train"][0], 2) for split in ("train", "validate")}


# ------------------------------------------------------------------------------------------- tables


def short(number: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def speed_table(stages: dict[str, dict]) -> str:
    """Images/s (least to most), their ratio, and peak memory."""

    def rate(way: dict | None) -> str:
        if not way:
            return "-"
        middle, least, most = (short(way[f"images_per_second{end}"]) for end in ("", "_min", "_max"))
        return f"{middle} ({least}-{most})"

    def memory(way: dict | None) -> str:
        return f"{way['peak_bytes'] / 2**20:.0f}" if way else "-"

    heads = ["stage", "plain, images/s", "ours, images/s", "ratio", "plain, peak MiB", "ours, peak MiB"]
    rows = []
    for title, ways in stages.items():
        report, ours = ways.get("plain"), ways["ours"]
        ratio = f"{ours['images_per_second'] / report['images_per_second']:.1f}" if report else "-"
        rows.append([title, rate(report), rate(ours), ratio, memory(report), memory(ours)])
    return markdown(heads, rows)


def limit_table(stages: dict[str, dict]) -> str:
    """Operations and bytes an image, the machine's limit, and the share of it reached."""
    rows = []
    for title, ways in stages.items():
        for which, way in ways.items():
            if "share_of_limit" in way:
                gigas, megas = way["operations_per_image"] / 1e9, way["bytes_per_image"] / 1e6
                limit, share = way["limit_images_per_second"], way["share_of_limit"]
                rows.append([title, which, short(gigas), short(megas), short(limit), f"{share:.1%}"])
    return markdown(["stage", "way", "GFLOP/image", "MB/image", "limit, images/s", "share reached"], rows)


def growth_table(rows: list[dict]) -> str:
    """Time and memory by number of slices."""
    heads = ["training slices", "s/epoch", "s per 1,000", "peak MiB beyond torch", "of it data, MiB", "GPU peak MiB"]
    table = []
    for row in rows:
        sizes = [row[key] / 2**20 for key in ("peak_bytes", "data_bytes", "gpu_bytes")]
        seconds = row["seconds_per_epoch"]
        each = seconds / row["images"] * 1000
        table.append([f"{row['images']:,}", f"{seconds:.2f}", f"{each:.2f}", *(f"{size:.0f}" for size in sizes)])
    return markdown(heads, table)


def second_start_table(result: dict) -> str:
    """Times of the starts, and memory."""

    def spread(key: str) -> str:
        seconds = result[f"{key}_seconds"]
        return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"

    rows = [["first start to first step, decoding all files, s", f"{result['first_start_seconds']:.1f}"]]
    rows.append(["second start to first step, s", spread("second_start")])
    rows.append(["of it importing torch, s", spread("importing_torch")])
    rows.append(["beyond it, s", spread("beyond_torch")])
    sizes = {"with torch imported": "torch_peak_bytes", "after the first step": "peak_bytes", "GPU": "gpu_bytes"}
    for title, key in sizes.items():
        rows.append([f"peak memory, {title}, MiB", f"{result[key] / 2**20:.0f}"])
    return markdown([f"{result['images']:,} training slices", "value"], rows)


def precision_table(rows: list[dict]) -> str:
    """Final SSIM and seconds, a line a training."""
    table = []
    for row in rows:
        numbers = [str(row["seed"]), f"{row['images']:,}", f"{row['validation_ssim']:.4f}", f"{row['seconds']:.0f}"]
        table.append([row["precision"], *numbers])
    return markdown(["precision", "seed", "slices seen", "validation SSIM", "s"], table)


# ------------------------------------------------------------------------------------------- the command line


def describe_machine(on: Compute, machine: Machine) -> dict:
    """Where it was measured, and what else that machine did then."""
    about = {"device": on.describe(), "processor": processor(), "cores": os.cpu_count()}
    about |= {"platform": platform.platform(), "torch": torch.__version__, "load_average": os.getloadavg()[0]}
    rates = {f"{str(kind).removeprefix('torch.')}_flops": rate for kind, rate in machine.operations.items()}
    return about | rates | {"copy_bytes_per_second": machine.copy}


def processor() -> str:
    """The CPU's name, as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())  # not every architecture has a name there


def headline(data: str, about: dict) -> str:
    """A line on data, machine and measured rates, to stand above the tables."""
    rates = [f"{about[key] / 1e9:,.0f} GFLOP/s in {key.removesuffix('_flops')}" for key in about if "_flops" in key]
    copy = f"{about['copy_bytes_per_second'] / 1e9:.3g} GB/s read and written by a copy"
    machine = [data, about["device"], about["processor"], f"{about['cores']} cores", f"PyTorch {about['torch']}"]
    return "; ".join([*machine, *rates, copy, f"load {about['load_average']:.2g} when it began"]) + "."


def stages_of(args: SpeedSettings, source: Path, folder: Path, on: Compute, machine: Machine) -> dict[str, dict]:
    """The measurements of all the stages asked for."""
    root = measure.repeated_set(source, folder / "slices", published_shares(args.images))
    data = dataset.load(str(root), ("train", "validate"))
    bench = Bench(args, folder, data, dataset.content_box(data.splits["train"].images), on)
    results = {}
    for name in args.stages or (*STAGES, "whole"):
        results |= measure_whole(bench) if name == "whole" else measure_stage(bench, name, machine)
    return results


@exit_on_input_error
def main() -> int:
    args = cli.parse(SpeedSettings, __doc__)
    if args.growth + args.second_start + args.both_precisions > 1:
        raise InputError("--growth, --second-start and --both-precisions: give one of them")
    args = args.model_copy(update=QUICK) if args.quick else args
    on = compute.choose(args.device, args.precision)
    source = places.find(args.data)
    title = "synthetic demo set" if demo.is_demo(source) else source.resolve().name
    own = sum(len(files) for split, files in scan(source).files.items() if split in SPLITS)
    side, copied = (256, 2**22) if args.quick else (8192 if on.device.type == "cuda" else 2048, 2**30)
    machine = measure.machine_rates(on.device, on.bf16, side, copied)
    about = {"data": f"{title} ({own:,} slices, repeated)", "machine": describe_machine(on, machine)}
    about["settings"] = args.model_dump(mode="json")
    print(headline(about["data"], about["machine"]), flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # the user's own cache stays as it is
        if args.growth:
            result = {"growth": growth(args, source, folder, on)}
            tables = [growth_table(result["growth"])]
        elif args.second_start:
            result = {"second_start": second_start(args, source, folder, on)}
            tables = [second_start_table(result["second_start"])]
        elif args.both_precisions:
            result = {"both_precisions": both_precisions(args, source, folder, on)}
            tables = [precision_table(result["both_precisions"])]
        else:
            result = {"stages": stages_of(args, source, folder, on, machine)}
            tables = [speed_table(result["stages"]), limit_table(result["stages"])]
    try:
        args.out.write_text(json.dumps(about | result, indent=2))
    except OSError as error:
        raise InputError(f"can't write {args.out}: {error.strerror}; choose another --out") from error
    print("", *tables, sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
