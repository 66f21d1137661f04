"""How things are timed here: interleaved runs, ratios within a round, a table and a JSON file.

On a shared machine, a quiet minute flatters whoever is timed in it. So the methods take turns
(A B C A B C ...), a ratio divides two runs of the same round, and a row shows the median of the
rounds.
"""

import argparse
import importlib.metadata
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import zoestim

# Calls are repeated until they last so many seconds, as timeit does, but not more often than that.
SHORT = 0.25
MOST_CALLS = 100


@dataclass
class Runs:
    """The runs of one method.

    Parameters
    ----------
    method : str
        Its name.
    n_coordinates : int
        How many partial derivatives one run estimates.
    seconds : list of float
        The duration of each run, in the order of the rounds.
    """

    method: str
    n_coordinates: int
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Return the median duration of a run."""
        return statistics.median(self.seconds)

    def ratio_to(self, other: "Runs") -> float:
        """Return how many times longer a coordinate takes here, the median over the rounds."""
        own, theirs = self.n_coordinates, other.n_coordinates
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median((a / own) / (b / theirs) for a, b in pairs)

    def as_row(self) -> dict[str, Any]:
        """Return what is written to the JSON file."""
        return {
            "method": self.method,
            "n_coordinates": self.n_coordinates,
            "seconds": {
                "runs": self.seconds,
                "median": self.median,
                "min": min(self.seconds),
                "median_per_coordinate": self.median / self.n_coordinates,
            },
        }


def interleaved(
    methods: Mapping[str, tuple[Callable[[], Any], int]], repeats: int, device: str
) -> dict[str, Runs]:
    """Time methods in turns: all of them in each of `repeats` rounds, after two untimed calls.

    In its turn, a method that is soon done runs several times, as in a training: its first call
    finds the caches as the method before it left them.

    Parameters
    ----------
    methods : mapping from name to (callable, int)
        What to run, and how many coordinates it estimates.
    repeats : int
        The number of rounds.
    device : str
        Where the work is done; a GPU is waited for before each look at the clock.
    """
    runs = {name: Runs(name, n) for name, (_, n) in methods.items()}
    n_calls = {}
    for name, (call, _) in methods.items():
        call()
        n_calls[name] = max(1, round(SHORT / max(duration(call, device), SHORT / MOST_CALLS)))
    for _ in range(repeats):
        for name, (call, _) in methods.items():
            runs[name].seconds.append(duration(call, device, n_calls[name]))
    return runs


def duration(call: Callable[[], Any], device: str, n_calls: int = 1) -> float:
    """Return how many seconds one call takes, of several one after the other."""
    start = now(device)
    for _ in range(n_calls):
        call()
    return (now(device) - start) / n_calls


def now(device: str) -> float:
    """Return the time, once all that was asked of the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the p of ``seconds ~ sizes ** p``, by least squares in log-log."""
    slope, _ = statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    )
    return slope


# --- What is told of a run


def add_options(parser: argparse.ArgumentParser, repeats: int = 5) -> None:
    """Add the options that all timings have."""
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds; 5 or more to report")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all runs and versions to this file")


def numbers(text: str) -> list[int]:
    """Return the integers of an option, with commas between them."""
    return [int(part) for part in text.split(",")]


def start(options: argparse.Namespace) -> None:
    """Set the number of threads and print where the timings are taken."""
    torch.set_num_threads(options.threads)
    about = environment(options.device)
    print(
        f"{about['device_name']}, {about['torch_threads']} torch thread(s), torch "
        f"{about['torch']}, zoestim {about['zoestim']}; {options.repeats} interleaved rounds, "
        "medians; a ratio is the median of those within a round"
    )


def environment(device: str) -> dict[str, Any]:
    """Return what timings depend on besides the code: machine, threads and versions."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "cpu": cpu_model(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if on_gpu else cpu_model(),
        "torch_threads": torch.get_num_threads(),
        "tf32_convolutions": on_gpu and torch.backends.cudnn.allow_tf32,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "zoestim": zoestim.__version__,
    }


def cpu_model() -> str:
    """Return the name of the processor."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of the same columns: text to the left, figures to the right."""
    columns = list(rows[0])
    cells = [[shown(row[name]) for name in columns] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)]
    is_text = [isinstance(rows[0][name], str) for name in columns]
    for line in [columns, *cells]:
        aligned = (
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(line, widths, is_text, strict=True)
        )
        print("  ".join(aligned).rstrip())


def shown(value: Any) -> str:
    """Return a value as a table shows it: figures to four digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write_json(options: argparse.Namespace, content: Mapping[str, Any]) -> None:
    """Write the content beside options, machine and versions, if a path was given."""
    if options.json is None:
        return
    given = {name: value for name, value in vars(options).items() if name != "json"}
    whole = {"options": given, "environment": environment(options.device), **content}
    options.json.write_text(json.dumps(whole, indent=1, default=str) + "\n")
