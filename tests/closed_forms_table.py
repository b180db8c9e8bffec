"""Fills the tables of docs/closed_forms.md: what the scripts learn beside what is exact.

    python tests/closed_forms_table.py

A table stands between a line such as <!-- plane --> and the next <!-- end -->; the text around it
is left alone. closed_forms.py measures, for this page as for the tests. It takes some minutes.
"""

import platform
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from closed_forms import CASES, METHODS, Number  # noqa: E402

PAGE = ROOT / "docs" / "closed_forms.md"
SEEDS = [1, 2, 3]
COMMAND = "python tests/closed_forms_table.py"
HEADER = ["property", "script", "exact", *(f"seed {seed}" for seed in SEEDS)]
HEADER += ["largest error", "tolerance", "right"]


def digits(x: float) -> str:
    """Four of them."""
    return f"{x:.4g}"


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def first_cells(script: str, number: Number) -> list[str]:
    """What does not depend on a run."""
    return [number.what, f"[{METHODS[script]}]({script}.md)", digits(number.exact)]


def last_cells(number: Number, right: bool) -> list[str]:
    return [digits(number.tolerance), "yes" if right else "**no**"]


def row_of(script: str, same: list[Number]) -> str:
    """One number, once for each seed."""
    first = same[0]
    learnt = [number.learnt for number in same]
    error = max(abs(value - first.exact) for value in learnt)
    cells = first_cells(script, first) + [digits(value) for value in learnt]
    cells.append(digits(error))
    return line(cells + last_cells(first, all(number.is_right() for number in same)))


def fill(page: str, name: str, text: str) -> str:
    """The page with this text between the two marks of that name."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->\n)"
    assert len(re.findall(pattern, page, re.DOTALL)) == 1, name
    return re.sub(pattern, lambda found: f"{found[1]}{text}{found[2]}", page, flags=re.DOTALL)


def main() -> None:
    torch.set_num_threads(1)
    began = time.process_time()
    page = PAGE.read_text(encoding="utf-8")
    everything: list[str] = []
    for name, case in CASES.items():
        rows = []
        for script in case.scripts:
            print(f"{name}: {script}", flush=True)
            runs = [case.numbers(script, seed) for seed in SEEDS]
            rows += [row_of(script, list(same)) for same in zip(*runs, strict=True)]
        head = [line(HEADER), line(["---"] * 2 + ["---:"] * 6 + ["---"])]
        page = fill(page, name, "\n" + "\n".join(head + rows) + "\n\n")
        everything += rows
    wrong = [row for row in everything if row.endswith("**no** |")]
    minutes = (time.process_time() - began) / 60
    verdict = f"{len(wrong)} of them are not" if wrong else "all are"
    summary = f"""
There are {len(everything)} numbers below, each learnt with {len(SEEDS)} seeds. For every seed, \
{verdict} within their tolerance of the exact value. To measure them again, in about \
{minutes:.0f} minutes:

```bash
{COMMAND}
```

These are of Python {platform.python_version()}, PyTorch {torch.__version__} and NumPy \
{np.__version__}, on one core. `tests/test_closed_forms.py` asserts the same, and \
`tests/slips/closed_forms.toml` lists wrong lines which that test catches. The settings are in \
`tests/closed_forms.py`.

"""
    PAGE.write_text(fill(page, "summary", summary), encoding="utf-8")
    print(f"{PAGE}: {len(everything)} numbers, {len(wrong)} not right, {minutes:.1f} minutes")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
