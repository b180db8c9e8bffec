# MIT licence. Part of Marginalia.
"""Keep the policy of a run and nothing else: the actor's weights.

    python tools/keep_policy.py runs/<run> --best
    python tools/enjoy.py policies/<environment>__<script>__<seed>__best

The new folder has a model.pt and an args.json, which is what enjoy.py needs. With the default
networks it is a twelfth as large as TD3's model.pt, and a fifth as large as PPO's. A run cannot be
resumed from it. args.json keeps the settings and versions, but no path and no machine.
"""

import dataclasses
import json
from pathlib import Path

import torch
import tyro
from enjoy import explain, fail, find_model

PLACES = ("runs_dir", "resume", "platform", "cores", "track")  # they say nothing about the policy


@dataclasses.dataclass
class Args:
    run: tyro.conf.Positional[Path] = Path("runs")
    """a run's folder, or one above, in which the latest run is taken"""
    best: bool = False
    """the networks of the best evaluation instead of the last ones"""
    out: Path = Path("policies")
    """the new folder lies in this one"""


def actors_part(model: Path) -> dict[str, torch.Tensor]:
    """The entries of a model.pt whose names begin with "actor."."""
    with explain(f"cannot read {model}"):
        weights = torch.load(model, map_location="cpu", weights_only=True)
        found = {name: value for name, value in weights.items() if name.startswith("actor.")}
    if not found:
        fail(f"there is no actor in {model}")
    return {name: value.clone() for name, value in found.items()}


def main(args: Args) -> Path:
    """Write the folder; return it."""
    model = find_model(args.run, args.best)
    run = model.resolve().parent
    with explain(f"cannot use {run / 'args.json'}"):
        about = json.loads((run / "args.json").read_text(encoding="utf-8"))
    for name in PLACES:
        about.pop(name, None)
    parts = run.name.rsplit("__", 3)  # environment, script, seed, time
    if len(parts) < 4:
        fail(f"{run.name} is not the name of a run's folder")
    kind = "best" if model.name == "best_model.pt" else "last"
    folder = args.out / "__".join([*parts[:3], kind])
    if folder.exists():
        fail(f"there is already a {folder}")
    weights = actors_part(model)
    with explain(f"cannot write {folder}", OSError):
        folder.mkdir(parents=True)
        torch.save(weights, folder / "model.pt")
        (folder / "args.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    size = (folder / "model.pt").stat().st_size
    print(f"{folder}: {size:,} B")
    return folder


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
