"""Settings by path on a tree of frozen classes."""

import pytest
from attrs import field, frozen
from attrs.validators import gt

from hetmem.errors import ConfigError, ConfigErrors
from hetmem.study.scenario import scenario
from hetmem.study.settings import has_path, with_settings
from hetmem.workload import fixed


@frozen(kw_only=True)
class Link:
    name: str = "pcie"
    gbs: float = field(default=25.0, validator=gt(0))
    latency_s: float = 1e-6
    limit_gbs: float | None = None

    def __attrs_post_init__(self):
        if self.latency_s > 1:
            raise ConfigError("latency_s", "is longer than a second")


@frozen(kw_only=True)
class Machine:
    count: int = field(default=1, validator=gt(0))
    pinned: bool = True
    mapping: str = "row"
    link: Link = field(factory=Link)
    ssd: Link | None = None


@frozen(kw_only=True)
class Tree:
    machine: Machine = field(factory=Machine)
    capacity_bytes: int = 10


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("machine.count", 3, 3),
        ("machine.count", "3", 3),
        ("machine.count", 3.0, 3),
        ("machine.count", "3e0", 3),
        ("machine.link.gbs", "12.5", 12.5),
        ("machine.link.gbs", 12, 12.0),
        ("machine.link.gbs", "80 GB/s", 80.0),
        ("machine.link.limit_gbs", "500 MB/s", 0.5),
        ("machine.link.limit_gbs", "none", None),
        ("machine.link.limit_gbs", None, None),
        ("machine.link.latency_s", "5 us", 5e-6),
        ("machine.pinned", "false", False),
        ("machine.pinned", True, True),
        ("machine.mapping", "bgfirst", "bgfirst"),
        ("machine.mapping", '"bgfirst"', "bgfirst"),
        ("capacity_bytes", "16 GiB", 16 * 2**30),
        ("capacity_bytes", "256 GB", 256 * 10**9),
    ],
)
def test_a_value_replaces_a_field(path, value, expected):
    tree = Tree()
    changed = with_settings(tree, {path: value})
    node = changed
    for name in path.split("."):
        node = getattr(node, name)
    assert node == expected
    assert type(node) is type(expected)
    assert tree == Tree()


def test_several_settings_change_one_tree():
    changed = with_settings(Tree(), {"machine.count": 4, "machine.link.gbs": 9, "capacity_bytes": 11})
    assert changed == Tree(machine=Machine(count=4, link=Link(gbs=9.0)), capacity_bytes=11)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("machin.count", 1, "machin.count: unknown field 'machin'; did you mean 'machine'?"),
        ("machine.link.gb", 1, "machine.link.gb: unknown field 'gb'; did you mean 'gbs'?"),
        ("machine.link.name", "x", "machine.link.name: unknown field 'name'; known: gbs, latency_s, limit_gbs"),
        ("machine.count.x", 1, "machine.count.x: count has no fields"),
        ("machine.ssd.gbs", 1, "machine.ssd.gbs: this machine has no ssd"),
        ("machine.link", 1, "machine.link: is a group; set one of its fields: gbs, latency_s, limit_gbs"),
        ("machine.count", "many", "machine.count: 'many' is not a quantity such as '80 GB/s', '5 us' or '16 GiB'"),
        ("machine.count", 2.5, "machine.count: expected an integer, not 2.5"),
        ("machine.count", "2.5", "machine.count: expected an integer, not 2.5"),
        ("machine.count", "true", "machine.count: expected an integer, not True"),
        ("machine.count", 0, "machine.count: 'count' must be > 0: 0"),
        ("machine.link.gbs", "inf", "machine.link.gbs: expected a finite number, not inf"),
        ("machine.link.gbs", "nan", "machine.link.gbs: expected a finite number, not nan"),
        ("machine.link.gbs", -1, "machine.link.gbs: 'gbs' must be > 0: -1.0"),
        ("machine.link.gbs", None, "machine.link.gbs: expected a finite number, not None"),
        ("machine.link.latency_s", "3 s", "machine.link.latency_s: is longer than a second"),
        ("machine.pinned", "yes", "machine.pinned: expected true or false, not 'yes'"),
        ("machine.mapping", 5, "machine.mapping: expected text, not 5"),
        ("", 5, ": unknown field ''; known: machine, capacity_bytes"),
    ],
)
def test_a_wrong_path_or_value_is_one_line_that_names_it(path, value, says):
    with pytest.raises(ConfigError) as caught:
        with_settings(Tree(), {path: value})
    assert str(caught.value) == says


def test_several_errors_are_told_at_once_a_line_each():
    with pytest.raises(ConfigErrors) as caught:
        with_settings(Tree(), {"machine.cout": 1, "capacity_bytes": 5, "machine.pinned": 3})
    assert str(caught.value).splitlines() == [
        "machine.cout: unknown field 'cout'; did you mean 'count'?",
        "machine.pinned: expected true or false, not 3",
    ]


def test_whether_a_path_can_be_set():
    tree = Tree()
    assert has_path(tree, "machine.link.gbs")
    assert has_path(tree, "capacity_bytes")
    for path in ("machine", "machine.link", "machine.nothing", "machine.ssd.gbs", "machine.count.x", ""):
        assert not has_path(tree, path), path


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("machine.gpu.fp16_tflops", "165 TFLOPS", 165.0),
        ("machine.gpu.capacity_gb", "24 GB", 24.0),
        ("machine.pcie.pj_per_bit", "10 pJ/bit", 10.0),
        ("machine.pcie.h2d_pinned.gbs", "30 GB/s", 30.0),
        ("machine.pcie.h2d_pinned.latency_s", "5 us", 5e-6),
        ("machine.host.capacity_bytes", "64 GB", 64_000_000_000),
    ],
)
def test_a_unit_is_converted_to_the_fields_own(path: str, text: str, value: float) -> None:
    tree = scenario("accelerate", model="opt-6.7b", workload_=fixed(8, 2, 1)).configuration()
    node = with_settings(tree, {path: text})
    for name in path.split("."):
        node = getattr(node, name)
    assert node == pytest.approx(value)


def test_a_unit_of_another_dimension_is_refused() -> None:
    tree = scenario("accelerate", model="opt-6.7b", workload_=fixed(8, 2, 1)).configuration()
    with pytest.raises(ConfigError, match=r"machine\.pcie\.h2d_pinned\.gbs: '5 us' is in s, expected B/s"):
        with_settings(tree, {"machine.pcie.h2d_pinned.gbs": "5 us"})


def test_a_group_that_is_missing_cannot_be_set_as_a_whole():
    with pytest.raises(ConfigError, match=r"machine\.ssd: this machine has no ssd"):
        with_settings(Tree(), {"machine.ssd": "foo"})


@pytest.mark.parametrize(("name", "group"), [("host_link", "machine.pcie"), ("peer_link", "machine.gpu_link")])
def test_a_name_that_is_looked_up_already_is_refused_and_says_what_to_set(name, group):
    tree = scenario("resident", model="opt-6.7b", workload_=fixed(8, 2, 1)).configuration()
    with pytest.raises(ConfigError, match=rf"machine\.gpu\.{name}: is looked up .* {group}, or .* --gpu"):
        with_settings(tree, {f"machine.gpu.{name}": "pcie5-x16"})
