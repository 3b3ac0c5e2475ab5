"""From a table of measured kernels to a device entry: fit, cross-validate, hold out, plot, write.

A calibration belongs to a GPU and a software stack. The entry that it writes is a catalogue file: put it in
the folder ``HETMEM_CATALOG`` as ``kernel_laws.toml`` and ``device(GPU, stack=STACK)`` uses it.
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from attrs import frozen

from hetmem import catalog
from hetmem.errors import ConfigError
from hetmem.hardware.device import StatedError, peaks
from hetmem.hardware.kernel_law import Peaks, SmoothGemmLaw, TiledGemmLaw
from hetmem.study.kernel_fit import Fit, by_size, error_of, fit, label, naive_seconds
from hetmem.study.kernel_form import Points
from hetmem.study.kernel_table import read

_GEMM_KEYS = {SmoothGemmLaw: "smooth_gemm", TiledGemmLaw: "tiled_gemm"}
_RATIOS = (0.4, 1.8)  # of the plot; points beyond lie on its edge


@frozen
class SizeError:
    """The error of a law and of the naive baseline (datasheet roofline + 5 us) on the same points."""

    law: StatedError
    naive: StatedError


@frozen(eq=False)
class Calibration:
    """What a table says about a device.

    ``fits`` holds a law per kernel class, ``fitted`` its error by class and size on the points of the fit,
    ``held_out`` on the rows held out (empty without a hold-out).
    """

    device: str
    stack: str
    table: str
    form: str
    fits: tuple[Fit, ...]
    fitted: Mapping[str, SizeError]
    held_out: Mapping[str, SizeError]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers and text, for JSON."""
        return {
            "device": self.device,
            "stack": self.stack,
            "table": self.table,
            "form": self.form,
            "kernels": {
                label(each.kernel, each.kind): {
                    "law": type(each.law).__name__,
                    "parameters": attrs.asdict(each.law),  # type: ignore[arg-type]
                    "at_bound": list(each.at_bound),
                    "cross_validated": attrs.asdict(each.cross_validated),
                }
                for each in self.fits
            },
            "fitted": {name: attrs.asdict(each) for name, each in self.fitted.items()},
            "held_out": {name: attrs.asdict(each) for name, each in self.held_out.items()},
        }


def calibrate(
    table: str | Path,
    device: str,
    where: Iterable[str] = (),
    shapes: str | Path | None = None,
    hold_out: Iterable[str] = (),
    out: str | Path | None = None,
    plot: str | Path | None = None,
    *,
    stack: str = "user",
    source: str | None = None,
) -> Calibration:
    """Fit the kernel laws of ``device`` to the measured ``table``.

    Parameters
    ----------
    table
        CSV of a known form (:mod:`hetmem.study.kernel_table`), also gzip.
    device
        The GPU's catalogue id; its datasheet supplies the peaks.
    where, hold_out
        Conditions such as ``gpu=a100`` or ``batch%8=4``: rows to use, and of these the rows to test on.
    shapes
        Dimensions of the models that the table names; by default from the catalogue.
    out
        File to write the entry to; what it holds of the same device and stack keeps its other classes.
    plot
        Image file: predicted over measured time against measured time, by kernel class.
    stack
        Name of the software stack that was measured.
    source
        Origin of the numbers in the entry; by default the table's name and selection.

    Raises
    ------
    ConfigError, UnknownNameError
        When the table is bad (with row and reason), nothing is left to fit, or the device is unknown.
    """
    where, hold_out = tuple(where), tuple(hold_out)
    limits = peaks(device)
    gpu_id = catalog.entry("gpus", device).id
    rows = read(table, shapes).select(where)
    if rows.frame.empty:
        raise ConfigError("where", f"{', '.join(where)} leaves no row of {table}")
    training = rows.select(hold_out, keep=False) if hold_out else rows
    points = training.points()
    if not points:
        raise ConfigError(str(table), f"no row to fit{' outside the hold-out' if hold_out else ''}")
    fits = tuple(fit(each, limits) for each in points)
    tests: list[Points] = []
    if hold_out:
        tests = rows.select(hold_out).points()
        if not tests:
            raise ConfigError("hold_out", f"{', '.join(hold_out)} matches no row that was selected")
    fitted, held_out = _errors(fits, points, limits), _errors(fits, tests, limits)
    found = Calibration(gpu_id, stack, str(table), rows.form, fits, fitted, held_out)
    if out is not None:
        selection = "".join(f", {clause}" for clause in where) + "".join(f", not {c}" for c in hold_out)
        _write(found, Path(out), source or f"calibrated from {Path(table).name}{selection}")
    if plot is not None:
        _draw(found, points, tests, limits, Path(plot))
    return found


def _errors(fits: Iterable[Fit], points: Iterable[Points], limits: Peaks) -> dict[str, SizeError]:
    laws = {(each.kernel, each.kind): each.law for each in fits}
    found = {}
    for each in points:
        law = laws.get((each.kernel, each.kind))
        if law is None:  # a class that only the hold-out has
            continue
        for name, part in by_size(each).items():
            predicted = law.seconds(limits, *part.variables.values())
            naive = naive_seconds(limits, part)
            found[name] = SizeError(error_of(predicted, part.time_s), error_of(naive, part.time_s))
    return found


def _draw(found: Calibration, points: list[Points], tests: list[Points], limits: Peaks, path: Path) -> None:
    """Save one panel per kernel class; held-out points are drawn over fitted ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(found.fits), 3.6), layout="constrained")
    panels = figure.subplots(1, len(found.fits), squeeze=False, sharey=True)[0]
    for axes, each in zip(panels, found.fits, strict=True):
        for group, name, colour in ((points, "fitted", "tab:blue"), (tests, "held out", "tab:orange")):
            for part in group:
                if (part.kernel, part.kind) == (each.kernel, each.kind):
                    ratio = each.law.seconds(limits, *part.variables.values()) / part.time_s
                    time_us = part.time_s * 1e6
                    axes.plot(time_us, np.clip(ratio, *_RATIOS), ".", markersize=2, alpha=0.5, color=colour, label=name)
        axes.axhline(1.0, color="black", linewidth=0.8)
        error = each.cross_validated
        stated = f"cross-validated {error.median_pct:.1f} % median, {error.p90_pct:.1f} % p90"
        axes.set_title(f"{label(each.kernel, each.kind)}\n{stated}", fontsize=9)
        axes.set(xscale="log", xlabel="measured time (us)", ylim=_RATIOS)
        axes.xaxis.set_minor_formatter("")
        axes.legend(loc="upper right", fontsize=8)
    panels[0].set_ylabel("predicted / measured")
    figure.suptitle(f"{found.device}, {found.stack}")
    figure.savefig(path)


def _write(found: Calibration, path: Path, source: str) -> None:
    """Put the calibration into the catalogue file ``path``, beside what it already holds."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), str(error)) from None
    entry = document.setdefault(f"{found.device}:{found.stack}", {})
    for each in found.fits:
        value = _short(each.law)
        if each.kernel == "gemm":
            for key in _GEMM_KEYS.values():
                entry.pop(key, None)
            entry[_GEMM_KEYS[type(each.law)]] = {"source": source, "grade": "measured", "value": value}
        elif each.kernel == "elementwise":
            table = entry.setdefault("elementwise", {"source": source, "grade": "measured", "value": {}})
            table["source"] = source
            table["value"][each.kind] = value
        else:
            entry[each.kernel] = {"source": source, "grade": "measured", "value": value}
        told = "cross-validated, whole groups of shapes left out"
        errors = entry.setdefault("errors", {"source": told, "grade": "measured", "value": {}})
        errors["value"][label(each.kernel, each.kind)] = _short(each.cross_validated)
    text = "\n".join(_toml(document))
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text + "\n", encoding="utf-8")
    os.replace(scratch, path)


def _short(record: Any) -> dict[str, Any]:
    """Return the fields of an attrs object, floats to four digits."""
    fields = attrs.asdict(record).items()
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in fields}


def _toml(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[str]:
    """Return the lines of a TOML table: its own values, then its tables."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = ["", f"[{'.'.join(_key(part) for part in path)}]"] if path and plain else []
    lines += [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _toml(value, (*path, key))
    return lines


def _key(text: str) -> str:
    return text if text.replace("-", "").replace("_", "").isalnum() and text.isascii() else _value(text)


def _value(value: Any) -> str:
    """Return a TOML literal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_value(each) for each in value)}]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    raise ConfigError("out", f"cannot keep {value!r} of the existing file")
