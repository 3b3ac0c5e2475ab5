"""The role ``mapping``: what must hold of a policy that maps kernels over two memories.

Every example has a placement, with everything on the slow side if nothing else; a policy with fixed fractions conforms
where they fit the examples: 64 GB in all, 20 GB or none of it on the fast side.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from hetmem.policy.kernel_mapping import SUBLAYERS, Mapping, MappingView, SplitTable, Tier
from hetmem.testing.role import Arguments, Role, register_role

GB = 10**9
SIZES = {"attention": 16 * GB, "qkv": 12 * GB, "fc": 36 * GB}
PARTS = {"attention": 4, "qkv": 4, "fc": 6}


def _table(name: str, fast_rate: float, slow_rate: float, loaded: bool) -> SplitTable:
    size, parts = SIZES[name] if loaded or name != "attention" else 0, PARTS[name]
    fast = size * np.arange(parts + 1) // parts
    return SplitTable(fast / fast_rate, (size - fast) / slow_rate, fast, size - fast)


def _examples() -> Sequence[Arguments]:
    """Return views: a fast memory with room for some, for all or for nothing, equal rates, and no KV at all."""
    rates = ((3e12, 5e11), (1e12, 1e12))
    views = []
    for rate, room, loaded in product(rates, (20 * GB, 100 * GB, 0), (True, False)):
        attention, qkv, fc = (_table(name, *rate, loaded) for name in SUBLAYERS)
        views.append(MappingView(attention, qkv, fc, Tier("fast", room), Tier("slow", 64 * GB)))
    return [(view,) for view in views]


def _check_mapping(policy: Any, arguments: Arguments, decision: Any) -> None:
    view: MappingView = arguments[0]
    assert isinstance(decision, Mapping), f"expected a Mapping, not {decision!r}"
    for name in SUBLAYERS:
        parts = getattr(decision, name)
        assert type(parts) is int, f"expected a number of {name} parts, not {parts!r}"
        assert 0 <= parts <= view.table(name).parts, f"{parts} of {view.table(name).parts} {name} parts"
    assert view.fits(decision), f"{decision} does not fit in both memories"


def _counts_its_work(policy: Any) -> None:
    """``candidates`` is a count that depends on nothing but the view."""
    for (view,) in _examples():
        compared = policy.candidates(view)
        assert type(compared) is int, f"expected a number of candidates, not {compared!r}"
        assert compared >= 0, f"{compared} candidates"
        assert policy.candidates(view) == compared, "counts otherwise when asked again"


register_role(Role("mapping", (MappingView,), _examples, _check_mapping, (_counts_its_work,)))
