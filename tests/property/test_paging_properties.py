"""The page table against an independent recount, over random histories."""

from hypothesis import given
from hypothesis import strategies as st

from hetmem.errors import CapacityError
from hetmem.hardware.paging import PageTable, Translation

LAW = Translation(
    page_bytes=7, entry_bytes=8, logical_bytes=7 * 200, tlb_entries=4, miss_s=1.0, walkers=1, update_s=0.0
)
GROUPS = {"attention": (3, 100), "qkv": (2, 50), "fc": (4, 70)}

histories = st.lists(
    st.tuples(st.sampled_from(sorted(GROUPS)), st.floats(0, 1)).map(lambda c: (c[0], int(c[1] * GROUPS[c[0]][1])))
)


@given(st.integers(0, 700), histories)
def test_pages_agree_with_a_recount_and_no_frame_has_two_owners(capacity_bytes, history):
    table = PageTable("HBM", capacity_bytes, LAW)
    for group, (count, most) in GROUPS.items():
        table.reserve(group, count, most)
    sizes = dict.fromkeys(GROUPS, 0)
    for group, size in history:
        before = {g: table.pages(g) for g in GROUPS}
        try:
            written = table.resize(group, size)
        except CapacityError:
            assert {g: table.pages(g) for g in GROUPS} == before
            wanted = sum(-(-s // 7) * GROUPS[g][0] for g, s in {**sizes, group: size}.items())
            assert wanted > capacity_bytes // 7
            continue
        assert written == abs(table.pages(group) - before[group])
        sizes[group] = size
    frames = []
    for group, (count, most) in GROUPS.items():
        for index in range(count):
            mapped = [table.frame(group, index, offset) for offset in range(0, most, 7)]
            pages = -(-sizes[group] // 7)
            assert all(frame >= 0 for frame in mapped[:pages])
            assert all(frame == -1 for frame in mapped[pages:])
            frames += mapped[:pages]
    assert len(set(frames)) == len(frames) == table.held_pages <= table.frames
    assert not frames or max(frames) < table.frames
    assert table.held_bytes == sum(sizes[group] * count for group, (count, _) in GROUPS.items())
    assert table.waste_bytes == sum(-size % 7 * GROUPS[group][0] for group, size in sizes.items())


@given(histories)
def test_a_page_that_stays_keeps_its_frame(history):
    table = PageTable("HBM", 7 * 200, LAW)
    for group, (count, most) in GROUPS.items():
        table.reserve(group, count, most)
    for group, size in history:
        kept = [table.frame(group, 0, offset) for offset in range(0, GROUPS[group][1], 7)]
        table.resize(group, size)
        after = [table.frame(group, 0, offset) for offset in range(0, GROUPS[group][1], 7)]
        assert all(new in (old, -1) for old, new in zip(kept, after, strict=True) if old >= 0)
