"""Catalogue entries as typed values: nothing unknown, missing or of another type passes."""

import pytest
from attrs import frozen

from hetmem import catalog
from hetmem.catalog.record import read
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.hardware.pim import PimLevel


@frozen
class Thing:
    name: str
    size: int
    rate: float
    tiles: tuple[int, ...]
    note: str


GOOD = 'source = "x"\ngrade = "assumed"\nsize = 3\nrate = 2\ntiles = [1, 2]\nnote = "n"\n'


@pytest.fixture
def things(monkeypatch, tmp_path):
    monkeypatch.setenv("HETMEM_CATALOG", str(tmp_path))
    monkeypatch.setattr(catalog, "_loaded", {})

    def write(body):
        (tmp_path / "things.toml").write_text(f"[a]\n{body}")

    return write


def test_an_entry_becomes_its_class(things):
    things(GOOD)
    assert read(Thing, "things", "A") == Thing("a", 3, 2, (1, 2), "n")


@pytest.mark.parametrize(
    ("body", "key", "problem"),
    [
        (GOOD + "sise = 3\n", "sise", "did you mean 'size'"),
        (GOOD.replace("size = 3\n", ""), "size", "is missing"),
        (GOOD.replace("size = 3", "size = 3.5"), "size", "a whole number"),
        (GOOD.replace("rate = 2", "rate = true"), "rate", "a number"),
        (GOOD.replace("rate = 2", 'rate = "2"'), "rate", "a number"),
        (GOOD.replace("tiles = [1, 2]", "tiles = 1"), "tiles", "a list"),
        (GOOD.replace("tiles = [1, 2]", "tiles = [1.5]"), "tiles", "a whole number"),
        (GOOD.replace('note = "n"', "note = 1"), "note", "a text"),
    ],
)
def test_a_bad_key_is_named(things, body, key, problem):
    things(body)
    with pytest.raises(ConfigError, match=rf"things\.a\.{key}: .*{problem}"):
        read(Thing, "things", "a")


def test_an_unknown_entry_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'bank-limited'"):
        read(PimLevel, "pim_levels", "bank-limitd")


@pytest.mark.parametrize(
    "kind",
    ["pim_stacks", "pim_levels", "pim_designs", "tiled_gpus", "tile_law", "papi_systems", "attention_links"],
)
def test_shipped_entries_have_sources_that_stand_alone(kind):
    for name in catalog.ids(kind):
        for key, fact in catalog.entry(kind, name).facts.items():
            assert fact.source, (kind, name, key)
            assert "/shared" not in fact.source, (kind, name, key)
