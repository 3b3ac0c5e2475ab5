"""From catalogue entries to classes: exact types and every error at once."""

import pytest
from attrs import field, frozen
from attrs.validators import gt

from hetmem import catalog
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError, ConfigErrors


@frozen(kw_only=True)
class Inner:
    rate: float = field(validator=gt(0))


@frozen(kw_only=True)
class Part:
    name: str
    count: int
    rate: float
    flag: bool = False
    label: str = ""
    steps: tuple[float, ...] = ()
    inner: Inner | None = None


def part(text: str) -> Part:
    entry = catalog.parse("parts", f'[p]\nsource = "s"\ngrade = "assumed"\n{text}', "test")["p"]
    return structure(Part, entry)


def test_whole_numbers_are_floats_where_floats_are_wanted() -> None:
    built = part("count = 2\nrate = 3\nsteps = [1, 2.5]\ninner = { rate = 1 }\nflag = true")
    assert built == Part(name="p", count=2, rate=3.0, steps=(1.0, 2.5), inner=Inner(rate=1.0), flag=True)
    assert isinstance(built.rate, float)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("count = 2.7\nrate = 1", "parts.p.count: expected an integer, not 2.7"),
        ("count = true\nrate = 1", "parts.p.count: expected an integer, not True"),
        ('count = 2\nrate = "12"', "parts.p.rate: expected a finite number, not '12'"),
        ("count = 2\nrate = inf", "parts.p.rate: expected a finite number, not inf"),
        ("count = 2\nrate = false", "parts.p.rate: expected a finite number, not False"),
        ("count = 2\nrate = 1\nlabel = 3", "parts.p.label: expected text, not 3"),
        ("count = 2\nrate = 1\nflag = 1", "parts.p.flag: expected true or false, not 1"),
        ("count = 2\nrate = 1\nrat = 3", "parts.p.rat: unknown key; did you mean 'rate'?"),
        ('count = 2\nrate = 1\nsteps = [1, "x"]', r"parts.p.steps\[1\]: expected a finite number, not 'x'"),
        ("count = 2\nrate = 1\ninner = { rate = 1, x = 2 }", "parts.p.inner.x: unknown key"),
        ("count = 2\nrate = 1\ninner = { rate = -1 }", "parts.p.inner: .*rate"),
        ("count = 2\nrate = 1\nname = 'q'", "parts.p.name: unknown key"),
        ("count = 2", "parts.p.rate: required, but missing"),
    ],
)
def test_one_problem_is_one_line(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        part(text)
    assert "\n" not in str(caught.value)


def test_several_problems_are_a_line_each() -> None:
    with pytest.raises(ConfigErrors) as caught:
        part("count = 2.5\nextra = 1\nother = 2")
    assert len(str(caught.value).splitlines()) == 4
