"""The timing laws against measurement: DRAM efficiency against a cycle-level simulator, a link against a size sweep.

Both need the data files, which are not part of the package: ``HETMEM_SHARED_DATA`` names their folder. ``paper`` is the
simulated or measured value, ``as_published`` what the law gives.
"""

import numpy as np

from hetmem.hardware.dram import memory
from hetmem.hardware.link import link
from hetmem.study.reference_data import read
from hetmem.study.reproduce import Row, verdict

CONSTANT = 0.9
DRAM_LIMITS = {"2 KB and more, and streams": (0.025, 0.08), "below 2 KB": (0.05, 0.20)}
LINK_LIMITS = {"median": 0.03, "maximum": 0.12}


def dram() -> list[Row]:
    """Return the DRAM law on one stream of reads, a row per device and chunk size, and its errors."""
    rows: list[Row] = []
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in DRAM_LIMITS}
    for row in read("dram/sustained.csv"):
        if (row["mapping"], row["streams"], row["refresh"]) != ("bgfirst", "1", "ref") or float(row["write_frac"]):
            continue
        chunk = float(row["chunk_bytes"]) or None
        simulated, law = float(row["frac_peak"]), memory(row["device"]).efficiency(chunk)
        size = "below 2 KB" if chunk is not None and chunk < 2048 else "2 KB and more, and streams"
        errors[size].append((abs(law / simulated - 1), abs(CONSTANT / simulated - 1)))
        limit = DRAM_LIMITS[size][1]
        rows.append(
            Row(
                quantity="stream" if chunk is None else f"chunk of {chunk:.0f} B", system=row["device"].lower(),
                metric="sustained fraction of peak", unit="1", paper=simulated, as_published=law, tolerance=limit,
                verdict=verdict(law, simulated, limit),
            )
        )  # fmt: skip
    for size, pairs in errors.items():
        ours, constant = np.array(pairs).T
        mean, largest = DRAM_LIMITS[size]
        for metric, guess, other, limit in (
            ("mean error", float(ours.mean()), float(constant.mean()), mean),
            ("maximum error", float(ours.max()), float(constant.max()), largest),
        ):
            rows.append(
                Row(
                    quantity=size, metric=metric, unit="1", paper=None, as_published=guess, tolerance=(0.0, limit),
                    verdict=verdict(guess, None, (0.0, limit)),
                    note=f"a constant {CONSTANT}: {metric} {other:.1%} for {size}",
                )
            )  # fmt: skip
    return rows


def links() -> list[Row]:
    """Return the PCIe 3 law on the measured sweep from 4 KiB up: the error of the transfer time, four columns."""
    table = [row for row in read("kernels/pcie3_memcpy_sweep_gbs.csv") if int(row["bytes"]) >= 4096]
    size = np.array([float(row["bytes"]) for row in table])
    rows = []
    for path in ("pinned", "pageable"):
        for direction in ("h2d", "d2h"):
            measured = size / (np.array([float(row[f"{direction}_{path}_gbs"]) for row in table]) * 1e9)
            law = link("pcie3-x16").transfer_s(size, pinned=path == "pinned", direction=direction)
            error = np.abs(law / measured - 1)
            for metric, value in (("median", float(np.median(error))), ("maximum", float(error.max()))):
                limit = (0.0, LINK_LIMITS[metric])
                rows.append(
                    Row(
                        quantity=f"{direction} {path}", system="pcie3-x16", metric=f"{metric} error", unit="1",
                        paper=None, as_published=value, tolerance=limit,
                        verdict=verdict(value, None, limit, fitted=True), note="the constants come from this sweep",
                    )
                )  # fmt: skip
    return rows
