"""Which lines and branches of rooms 3 to 6 no test of the algorithms reaches. Exit code 1 if any.

    python tests/coverage_of_rooms.py

Room 7 is left out: much of it is run in processes of its own, where nothing is counted.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted(ROOT.glob("*_continuous.py")), ROOT / "sac_v1_value_net.py"]
# Of the algorithms and their training loops. All tests together would take an hour.
NAMES = "agents blocks columns formulas her per ppo tricks transitions updates wiring".split()
NAMES += ["parity_updates", "refusals", "worlds"]
TESTS = sorted(str(path) for name in NAMES for path in ROOT.glob(f"tests/test_{name}*.py"))


def rooms(path: Path) -> range:
    """The lines of rooms 3 to 6."""
    lines = path.read_text(encoding="utf-8").splitlines()
    banners = {line.split()[2]: n for n, line in enumerate(lines, 1) if line.startswith("# === ")}
    return range(banners["3."], banners["7."])


def main() -> None:
    python = [sys.executable, "-m"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "coverage.json")
        data = f"--data-file={Path(folder, 'data')}"
        measured = "--include=" + ",".join(str(path) for path in SCRIPTS)
        command = [*python, "coverage", "run", "--branch", measured, data]
        subprocess.run([*command, "-m", "pytest", "-n", "0", "-q", *TESTS], cwd=ROOT, check=True)
        command = [*python, "coverage", "json", "-q", "-o", str(report), data]
        subprocess.run(command, cwd=ROOT, check=True)
        files = json.loads(report.read_text(encoding="utf-8"))["files"]
    missing = False
    for path in SCRIPTS:
        seen, here = files[path.name], rooms(path)
        lines = [line for line in seen["missing_lines"] if line in here]
        branches = [branch for branch in seen["missing_branches"] if branch[0] in here]
        print(f"{path.name}: lines {lines}, branches {branches}")
        missing = missing or bool(lines or branches)
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
