"""tools/keep_policy.py keeps the actor of a run. That it plays as the run: test_enjoy.py."""

import re
from pathlib import Path

import enjoy
import keep_policy
import pytest
import torch


def kept(run: Path, out: Path, **changes) -> Path:
    return keep_policy.main(keep_policy.Args(run, out=out, **changes))


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run whose best networks are not its last ones."""
    folder = tmp_path / "runs" / "Pendulum-v1__sac_continuous__3__17.5"
    folder.mkdir(parents=True)
    for name, number in (("model.pt", 1.0), ("best_model.pt", 2.0)):
        weights = {"actor.net.0.bias": torch.full((2,), number), "q1.net.0.bias": torch.ones(9)}
        torch.save(weights, folder / name)
    (folder / "args.json").write_text('{"env_id": "Pendulum-v1", "seed": 3, "cores": 2}')
    return folder


def test_the_best_policy_is_kept(run, tmp_path):
    for best, name, number in ((False, "last", 1.0), (True, "best", 2.0)):
        folder = kept(run, tmp_path / "policies", best=best)
        assert folder.name == f"Pendulum-v1__sac_continuous__3__{name}"
        weights = torch.load(folder / "model.pt", weights_only=True)
        assert list(weights) == ["actor.net.0.bias"]
        assert weights["actor.net.0.bias"].tolist() == [number, number]


def test_refusals(run, tmp_path):
    """In one line; what is there already stays as it is."""
    folder = kept(run, tmp_path / "policies")
    before = (folder / "model.pt").read_bytes()
    with pytest.raises(SystemExit, match="^error: there is already a"):
        kept(run, tmp_path / "policies")
    assert (folder / "model.pt").read_bytes() == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="^error: no model.pt under"):
        kept(tmp_path / "empty", tmp_path)
    with pytest.raises(SystemExit, match="is not the name of a run's folder$"):
        kept(run.rename(run.with_name("renamed")), tmp_path)
    torch.save({"critic": torch.ones(1)}, run.with_name("renamed") / "model.pt")
    actorless = run.with_name("renamed").rename(run)
    with pytest.raises(SystemExit, match="^error: there is no actor in"):
        kept(actorless, tmp_path / "others")
    assert not (tmp_path / "others").exists()


# --- those that come with the project -----------------------------------------------------------
POLICIES = Path(keep_policy.__file__).parents[1] / "policies"
KEPT = {path.parent.name: path for path in sorted(POLICIES.glob("*/model.pt"))}


@pytest.mark.parametrize("name", KEPT)
def test_a_policy_that_comes_along_can_do_its_task(name):
    """Its returns are those that the page tells, but for the rounding of another processor."""
    if name.startswith("Hopper"):
        pytest.importorskip("mujoco")
    page = (POLICIES / "README.md").read_text(encoding="utf-8")
    (told,) = re.findall(rf"^\| `{name}` .*\| (-?\d+) \|$", page, re.MULTILINE)
    returns = enjoy.main(enjoy.Args(POLICIES / name, numbers=True, episodes=10))
    assert sum(returns) / 10 == pytest.approx(float(told), rel=0.02, abs=5)
    assert KEPT[name].stat().st_size < 400_000
