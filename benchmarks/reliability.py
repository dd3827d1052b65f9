"""What do faults.py, replaced.py, flips.py, fuzz.py and stops.py say in the README? A row for each thing they did."""

import json
from pathlib import Path

from benchmarks.tables import markdown


def of_each(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items())


def unless_failed(failed: int, text: str) -> str:
    return f"**{failed} failed**, of the others: {text}" if failed else text


def told_of_faults(report: dict) -> list[tuple[str, str]]:
    kills, inputs = report["kills"], report["inputs"]
    kinds = ", ".join(dict.fromkeys(name.partition(",")[0] for name in inputs))
    ends = [sum(number for name, number in inputs.items() if name.endswith(end)) for end in ("refused", "accepted")]
    disks = report["full_disks"]
    return [
        (
            f"SIGKILL at random moments of `train.py`, {kills} times: {of_each(report['kills_by_plan'])}",
            unless_failed(
                report["kills_failed"],
                f"all {kills} went on with `--resume`, no file unreadable, weights and metrics those of a run never"
                " killed, to the bit",
            ),
        ),
        (
            f"bad inputs, {sum(inputs.values())}: {kinds}, some with random bytes changed",
            unless_failed(
                sum(inputs.values()) - sum(ends),
                f"refused with exit status 2 and one line, nothing written: {ends[0]}; taken as they are: {ends[1]}",
            ),
        ),
        (
            f"a full disk, {disks} times, {report['full_disks_mounted']} of them a real file system",
            unless_failed(report["full_disks_failed"], "one line; each run that had begun resumed to the same result"),
        ),
    ]


def told_of_replaced(report: dict) -> list[tuple[str, str]]:
    done = f"SIGKILL of `predict.py` over older results, {report['kills']} times: {of_each(report['killed'])}"
    happened = "the older results or the newer, whole, and after the next start nothing else"
    return [(done, unless_failed(len(report["failures"]), happened))]


def told_of_flips(report: dict) -> list[tuple[str, str]]:
    return [
        (
            f"one bit of a `{suffix}` flipped, {sum(counts.values())} times",
            f"refused: {counts['refused']}; the same picture: {counts.get('the same picture', 0)};"
            f" another one, silently: {counts.get('another picture', 0)}",
        )
        for suffix, counts in report.items()
    ]


def told_of_fuzz(report: dict) -> list[tuple[str, str]]:
    statuses: dict[str, int] = {}
    for outcome, number in report["outcomes"].items():
        status = outcome.rpartition(" ")[2]
        statuses[status] = statuses.get(status, 0) + number
    done = f"checkpoints, states, configs, indexes, pictures, volumes, options changed, {report['examples']:,} times"
    refused, failed = statuses.get("2", 0), len(report["failures"])
    worked, gate = statuses.get("0", 0) + statuses.get("143", 0), statuses.get("1", 0)
    happened = f"refused with status 2, nothing written: {refused:,}; worked: {worked:,}; status 1: {gate}"
    return [(done, unless_failed(failed, f"{happened}; one line each, within 20 s and 2 GiB"))]


def told_of_stops(report: dict) -> list[tuple[str, str]]:
    done = f"SIGTERM at random moments of a run on {report['people']} people of the real set, {report['stops']} times"
    happened = f"all answered with status 143, the slowest after {report['slowest_seconds']:.1f} s"
    return [(f"{done}: {of_each(report['at'])}", unless_failed(len(report["failures"]), happened))]


REPORTS = {  # program whose report it is -> what a report says: pairs of what was done, and what happened
    "faults": told_of_faults,
    "replaced": told_of_replaced,
    "flips": told_of_flips,
    "fuzz": told_of_fuzz,
    "stops": told_of_stops,
}


def read(folder: Path) -> dict[str, dict]:
    """The reports in a folder, where each program has left NAME.json, by the program's name."""
    return {name: json.loads(path.read_text()) for name in REPORTS if (path := folder / f"{name}.json").is_file()}


def table(reports: dict[str, dict]) -> str:
    """What was done to the commands, and what happened, of the programs that left a report."""
    rows = [
        [f"`{name}.py`", done, happened]
        for name, told in REPORTS.items()
        if name in reports
        for done, happened in told(reports[name])
    ]
    return markdown(["in `benchmarks/`", "what was done", "what happened"], rows)
