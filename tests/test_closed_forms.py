"""The scripts learn what can be written down, within a stated tolerance, with three seeds.

closed_forms.py has the worlds, docs/closed_forms.md what came of it.
"""

import pytest
from closed_forms import CASES
from closed_forms_table import PAGE, SEEDS, first_cells, last_cells
from helpers import three_seeds

EACH = [(name, script) for name, case in CASES.items() for script in case.scripts]
each = pytest.mark.parametrize(("name", "script"), EACH)


@each
@three_seeds
def test_what_is_learnt_is_what_is_exact(name, script, seed):
    numbers = CASES[name].numbers(script, seed)
    assert [number for number in numbers if not number.is_right()] == []


@pytest.mark.slow
@each
def test_an_agent_that_has_learnt_nothing_is_wrong(name, script):
    """So is a sample of a few actions: no tolerance is so wide that anything passes."""
    case = CASES[name]
    numbers = case.numbers(script, SEEDS[0], **case.shortest)
    assert any(not number.is_right() for number in numbers)


@pytest.mark.slow
@each
def test_the_page_has_each_of_them(name, script):
    """Its exact values and tolerances are today's."""
    case = CASES[name]
    page = PAGE.read_text(encoding="utf-8")
    table = page.partition(f"<!-- {name} -->\n")[2].partition("<!-- end -->")[0]
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()]
    shown = [row[:3] + row[-2:] for row in rows if len(row) > 2 and f"({script}.md)" in row[1]]
    numbers = case.numbers(script, SEEDS[0], **case.shortest)
    assert shown == [first_cells(script, n) + last_cells(n, right=True) for n in numbers]
