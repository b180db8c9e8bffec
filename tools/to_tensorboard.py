# MIT licence. Part of Marginalia.
"""Write TensorBoard's files from the metrics.csv of runs, also of old ones; then look at them.

    python tools/to_tensorboard.py runs
    tensorboard --logdir runs

Each run's file comes into its folder. A file that an earlier call wrote there is replaced.
"""

import csv
import dataclasses
from pathlib import Path

import tyro

SUFFIX = ".from-metrics"  # ends the names of the files that are ours


@dataclasses.dataclass
class Args:
    paths: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """folders, searched for metrics.csv with all that is in them"""


def convert(path: Path) -> None:
    """A file beside this metrics.csv, with every number in it over the steps."""
    from torch.utils.tensorboard import SummaryWriter

    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(line for line in file if line.endswith("\n")))  # whole lines
    for old in path.parent.glob(f"events.out.tfevents.*{SUFFIX}"):
        old.unlink()
    with SummaryWriter(path.parent, filename_suffix=SUFFIX) as writer:
        for row in rows:
            step, seconds = int(row.pop("global_step")), float(row["seconds"])
            when = path.stat().st_mtime - float(rows[-1]["seconds"]) + seconds
            for name, cell in row.items():
                if cell:
                    writer.add_scalar(name, float(cell), step, when)
    print(f"{path.parent}: {len(rows)} rows")


def main(args: Args) -> None:
    for folder in args.paths:
        found = sorted(folder.rglob("metrics.csv"))
        if not found:
            raise SystemExit(f"error: no metrics.csv under {folder}")
        for path in found:
            try:
                convert(path)
            except ImportError as error:
                install = "pip install -r requirements-tensorboard.txt"
                raise SystemExit(f"error: {error}: {install}") from None
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise SystemExit(f"error: cannot convert {path}: {error!r}") from None


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
