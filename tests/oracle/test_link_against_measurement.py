"""Links against a measured PCIe sweep, all-reduce against collectives on rows that no fit has seen."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hetmem.hardware.link import link


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("direction", ["h2d", "d2h"])
@pytest.mark.parametrize("path", ["pinned", "pageable"])
def test_pcie3_sweep(shared_data: Callable[[str], Path], direction: str, path: str) -> None:
    rows = [r for r in read(shared_data("kernels/pcie3_memcpy_sweep_gbs.csv")) if int(r["bytes"]) >= 4096]
    size = np.array([float(r["bytes"]) for r in rows])
    measured_s = size / (np.array([float(r[f"{direction}_{path}_gbs"]) for r in rows]) * 1e9)
    law_s = link("pcie3-x16").transfer_s(size, pinned=path == "pinned", direction=direction)
    errors = np.abs(law_s / measured_s - 1) * 100
    print(f"{direction} {path}: median {np.median(errors):.1f} %, max {errors.max():.1f} %, calibrated")
    assert len(rows) == 9
    assert np.median(errors) <= 3
    assert errors.max() <= 12


@pytest.fixture(scope="module")
def nccl(shared_data: Callable[[str], Path]) -> np.ndarray:
    """Rows of all-reduce: row of the file, GPUs, bytes, seconds."""
    rows = enumerate(read(shared_data("kernels/aic_nccl_us.csv")))
    return np.array(
        [
            (i, int(r["num_gpus"]), 2 * int(r["message_elems"]), float(r["time_us"]) * 1e-6)
            for i, r in rows
            if r["op_name"] == "all_reduce"
        ]
    )


def test_allreduce_on_rows_that_the_fit_has_not_seen(nccl: np.ndarray) -> None:
    rows = nccl[nccl[:, 0] % 2 == 1]
    errors = np.abs(link("nvlink3").allreduce_s(rows[:, 2], rows[:, 1]) / rows[:, 3] - 1) * 100
    print(f"all-reduce, odd rows: median {np.median(errors):.1f} %, p90 {np.quantile(errors, 0.9):.1f} %")
    assert len(rows) >= 30
    assert np.median(errors) <= 15
    assert np.quantile(errors, 0.9) <= 32


def test_allreduce_constants_are_the_fit_of_the_even_rows(nccl: np.ndarray) -> None:
    """The shipped numbers come out of a fit on the even rows again, started somewhere else."""
    from scipy.optimize import least_squares

    _, gpus, size, measured = nccl[nccl[:, 0] % 2 == 0].T
    steps = 2 * (gpus - 1)
    wire = steps / gpus * size

    def residual(log_constants: np.ndarray) -> np.ndarray:
        start, step, slow, long_start, fast = np.exp(log_constants)
        return np.log(np.minimum(start + step * steps + wire / slow, long_start + wire / fast) / measured)

    guess = np.log([6e-6, 2e-6, 4e10, 3e-5, 1.5e11])
    fitted = np.exp(least_squares(residual, guess, loss="soft_l1", f_scale=0.1).x)
    short, long = link("nvlink3").allreduce
    shipped = (short.start_s, short.step_s, short.bus_gbs * 1e9, long.start_s, long.bus_gbs * 1e9)
    assert fitted == pytest.approx(shipped, rel=0.02)


def vidur(path: Path, node: str, collective: str, gpus: int) -> tuple[np.ndarray, np.ndarray]:
    rows = [
        (float(r["size_bytes"]), float(r["time_us"]) * 1e-6)
        for r in read(path)
        if (r["node"], r["collective"]) == (node, collective)
        and int(r["num_workers"]) == int(r["devices_per_node"]) == gpus
    ]
    size, seconds = np.array(rows).T
    return size[1::2], seconds[1::2]


@pytest.mark.parametrize(
    ("name", "node", "collective", "gpus", "median_pct", "p90_pct"),
    [
        ("nvlink3", "a100_dgx", "send_recv", 2, 10, 20),
        ("pcie4-x16", "a100_pairwise_nvlink", "all_reduce", 4, 3, 8),
    ],
)
def test_peer_constants_on_rows_that_the_fit_has_not_seen(
    shared_data: Callable[[str], Path],
    name: str, node: str, collective: str, gpus: int, median_pct: float, p90_pct: float,
) -> None:  # fmt: skip
    size, measured = vidur(shared_data("kernels/vidur_comm_us.csv"), node, collective, gpus)
    law = link(name).transfer_s(size) if collective == "send_recv" else link(name).allreduce_s(size, gpus)
    errors = np.abs(law / measured - 1) * 100
    print(f"{name} {collective}: median {np.median(errors):.1f} %, p90 {np.quantile(errors, 0.9):.1f} %")
    assert np.median(errors) <= median_pct
    assert np.quantile(errors, 0.9) <= p90_pct


def test_allreduce_on_another_lab_s_machine(shared_data: Callable[[str], Path]) -> None:
    """Constants of one lab against the A100 boxes of another: nothing fitted, so the size only."""
    path = shared_data("kernels/vidur_comm_us.csv")
    for node, gpus in (("a100_dgx", 2), ("a100_dgx", 4), ("a100_dgx", 8), ("a100_pairwise_nvlink", 2)):
        size, measured = vidur(path, node, "all_reduce", gpus)
        errors = link("nvlink3").allreduce_s(size, gpus) / measured - 1
        print(f"{node}, {gpus} GPUs: median error {np.median(np.abs(errors)) * 100:.0f} %")
        assert np.median(np.abs(errors)) <= 0.35
