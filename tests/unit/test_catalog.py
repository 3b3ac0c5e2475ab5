"""The catalogue: where every number comes from."""

import pytest

from hetmem import catalog
from hetmem.catalog import GRADES, entry, ids, kinds, normalize, parse, patched
from hetmem.errors import ConfigError, UnknownNameError

ENTRY = '[thing]\nsource = "a datasheet"\ngrade = "published"\n'


def test_every_number_has_a_source_and_a_grade():
    seen = 0
    for kind in kinds():
        for name in ids(kind):
            for key, fact in entry(kind, name).facts.items():
                assert fact.source.strip(), f"{kind}.{name}.{key}"
                assert fact.grade in GRADES, f"{kind}.{name}.{key}"
                seen += 1
    assert seen > 500


def test_no_source_is_a_path_or_a_note_to_oneself():
    for kind in kinds():
        for name in ids(kind):
            for key, fact in entry(kind, name).facts.items():
                for word in ("shared/", "../", "reference page", "TODO", "spike"):
                    assert word not in fact.source, f"{kind}.{name}.{key}: {fact.source}"


def test_ids_differ_by_more_than_punctuation():
    for kind in kinds():
        names = [normalize(name) for name in ids(kind)]
        assert len(set(names)) == len(names), kind


def test_names_match_whatever_their_case_and_punctuation():
    found = entry("gpus", "rtx-4090")
    assert entry("gpus", "RTX 4090") is found
    assert entry("gpus", "rtx_4090") is found
    assert found["fp16_tflops"] == found.values()["fp16_tflops"] == found.facts["fp16_tflops"].value


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown gpu 'rtx-4091'; did you mean 'rtx-4090'"):
        entry("gpus", "rtx-4091")


def test_an_entry_holds_facts_with_their_own_or_the_entrys_source():
    found = parse("things", ENTRY + 'a = 1\nb = { value = 2, source = "a paper", grade = "derived" }\n'
                                    'c = { value = 3, grade = "assumed" }\nd = { x = 1 }', "test")["thing"]  # fmt: skip
    assert list(found.values().items()) == [("a", 1), ("b", 2), ("c", 3), ("d", {"x": 1})]
    facts = {key: (fact.source, fact.grade) for key, fact in found.facts.items()}
    assert facts == {
        "a": ("a datasheet", "published"), "b": ("a paper", "derived"),
        "c": ("a datasheet", "assumed"), "d": ("a datasheet", "published"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[thing]\ngrade = 'assumed'\na = 1", r"test: thing\.a: has no source"),
        ("[thing]\nsource = 's'\na = 1", r"test: thing\.a: grade must be one of .*, not 'None'"),
        ("[thing]\nsource = 's'\ngrade = 'guess'\na = 1", r"test: thing\.a: grade must be one of .*, not 'guess'"),
        ("thing = 5", "test: thing: expected a table with 'source' and 'grade'"),
        ("[thing", "test: "),
    ],
)
def test_an_entry_without_origin_is_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        parse("things", text, "test")


def test_a_patched_value_holds_for_the_length_of_a_block():
    before = entry("gpus", "t4")
    with patched("gpus", "T4", "fp16_tflops", 17):
        assert entry("gpus", "t4")["fp16_tflops"] == 17
        assert entry("gpus", "t4").facts["fp16_tflops"].grade == "assumed"
    assert entry("gpus", "t4") is before
    with pytest.raises(ZeroDivisionError), patched("gpus", "t4", "fp16_tflops", 17):
        raise ZeroDivisionError
    assert entry("gpus", "t4") is before


@pytest.fixture
def users_catalog(tmp_path, monkeypatch):
    monkeypatch.setenv("HETMEM_CATALOG", str(tmp_path))
    monkeypatch.setattr(catalog, "_loaded", {})
    return tmp_path


def test_users_add_entries_of_their_own(users_catalog):
    (users_catalog / "gpus.toml").write_text(ENTRY.replace("thing", "my-gpu") + "fp16_tflops = 5\n")
    assert entry("gpus", "MY GPU")["fp16_tflops"] == 5
    assert entry("gpus", "t4")["fp16_tflops"] > 5
    assert ids("gpus")[-1] == "my-gpu"
    assert ids("links")  # a kind of which the user has none


def test_users_cannot_change_an_entry_unseen(users_catalog):
    (users_catalog / "gpus.toml").write_text(ENTRY.replace("thing", "t4") + "fp16_tflops = 5\n")
    with pytest.raises(ConfigError, match="t4 is already in the catalogue"):
        entry("gpus", "t4")


def test_a_folder_that_is_missing_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(catalog, "_loaded", {})
    monkeypatch.setenv("HETMEM_CATALOG", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"HETMEM_CATALOG: .*nowhere is not a folder"):
        ids("dram")
