"""What there is: the rows of ``hetmem list``, and every number of ``hetmem show`` with its source and grade."""

from collections.abc import Callable
from typing import Any

from hetmem import catalog
from hetmem.errors import UnknownNameError
from hetmem.hardware.config import ASSUMPTIONS
from hetmem.hardware.dram import memory
from hetmem.study.metrics import METRICS
from hetmem.study.scenario import POLICIES
from hetmem.system import SYSTEMS

DEVICE_KINDS = ("gpus", "cpus", "dram", "links", "ssds", "ndp", "pim_stacks", "pim_levels", "attention_links")


def listing(what: str) -> list[dict[str, Any]]:
    """Return the rows of ``hetmem list``: systems, models, devices, machines and the others of the command line."""
    return _LISTS[what]()


def facts(name: str) -> list[dict[str, Any]]:
    """Return all that the catalogue knows under ``name``: a dictionary per entry, each value with source and grade.

    The name of a kind, such as ``gpus``, stands for its entries; ``carbon`` for footprints and prices both.

    Raises
    ------
    UnknownNameError
        With a suggestion out of everything that can be shown.
    """
    wanted = catalog.normalize(name)
    found = [_system_facts(system) for system in SYSTEMS if catalog.normalize(system.name) == wanted]
    shown = {one["machine"]["id"] for one in found}
    found += [
        _entry_facts(catalog.entry(kind, known))
        for kind in catalog.kinds()
        for known in catalog.ids(kind)
        if catalog.normalize(known) == wanted and not (kind == "machines" and known in shown)
    ]
    kinds = ("carbon", "prices") if wanted == "carbon" else tuple(k for k in catalog.kinds() if k == wanted)
    found += [_entry_facts(catalog.entry(kind, known)) for kind in kinds for known in catalog.ids(kind)]
    if not found:
        everything = [known for kind in catalog.kinds() for known in catalog.ids(kind)]
        raise UnknownNameError("name", name, (*(system.name for system in SYSTEMS), *everything))
    return found


def _system_facts(system: Any) -> dict[str, Any]:
    roles = {
        role: list(names) for role, names in {**{r: tuple(n) for r, n in POLICIES.items()}, **system.roles}.items()
    }
    return {
        "kind": "system", "id": system.name, "summary": system.summary, "policies": roles,
        "machine": _entry_facts(catalog.entry("machines", system.preset)),
    }  # fmt: skip


def _entry_facts(entry: catalog.Entry) -> dict[str, Any]:
    values = {key: {"value": f.value, "source": f.source, "grade": f.grade} for key, f in entry.facts.items()}
    return {"kind": entry.kind, "id": entry.id, "facts": values}


def _list_systems() -> list[dict[str, Any]]:
    return [{"system": system.name, "machine": system.preset, "summary": system.summary} for system in SYSTEMS]


def _list_models() -> list[dict[str, Any]]:
    from hetmem.model import load_model, model_ids

    rows = []
    for name in model_ids():
        spec = load_model(name)
        rows.append(
            {
                "model": name, "parameters (1e9)": round(spec.params / 1e9, 2), "layers": spec.n_layers,
                "d_model": spec.d_model, "KV heads": f"{spec.n_kv_heads} of {spec.n_heads}",
                "experts": f"{spec.experts_per_token} of {spec.n_experts}" if spec.n_experts else "-",
                "KV bytes per token": spec.kv_bytes_per_token(), "context": spec.max_context,
            }
        )  # fmt: skip
    return rows


def _list_devices() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind in DEVICE_KINDS:
        for name in catalog.ids(kind):
            values = catalog.entry(kind, name).values()
            if kind == "dram":  # its rate follows from clock, burst and width
                values["peak_gbs"] = memory(name).peak_gbs
            rows.append(
                {
                    "device": name, "kind": kind,
                    **{head: _first(values, scales) for head, scales in _DEVICE_COLUMNS.items()},
                }
            )  # fmt: skip
    return rows


# Of a device: columns of the list, and the keys that may hold them, each with how many of its unit make the column's.
_DEVICE_COLUMNS = {
    "peak TFLOP/s": {"fp16_tflops": 1.0, "fp32_tflops": 1.0},
    "peak GB/s": {
        "memory_gbs": 1.0, "peak_gbs": 1.0, "read_gbs": 1.0, "bytes_per_s": 1e9, "external_bytes_per_s": 1e9,
    },
    "capacity GB": {"capacity_gb": 1.0, "capacity_bytes": 1e9},
}  # fmt: skip


def _first(values: dict[str, Any], scales: dict[str, float]) -> float | None:
    return next((round(values[key] / scale, 3) for key, scale in scales.items() if key in values), None)


def _list_machines() -> list[dict[str, Any]]:
    rows = []
    for name in catalog.ids("machines"):
        values = catalog.entry("machines", name).values()
        users = ", ".join(system.name for system in SYSTEMS if system.preset == name)
        rows.append(
            {"machine": name, "GPU": values.get("gpu"), "GPUs": values.get("gpus"), "default of": users or None}
        )
    return rows


def _list_assumptions() -> list[dict[str, Any]]:
    return [
        {
            "assumption set": name,
            "what": _ASSUMED.get(name, f"what {ASSUMPTIONS[0]} means on some machines; not chosen by name"),
        }
        for name in catalog.ids("assumptions")
    ]


_ASSUMED = dict(zip(ASSUMPTIONS, ("the papers' own rates", "measured rates, the same for every system"), strict=True))


def _list_workloads() -> list[dict[str, Any]]:
    from hetmem.workload import workload, workload_ids

    return [{"workload": name, "what": workload(name).describe()["title"]} for name in workload_ids()]


def _list_policies() -> list[dict[str, Any]]:
    rows = [{"role": role, "system": "any", "policies": ", ".join(names)} for role, names in POLICIES.items()]
    for system in SYSTEMS:
        rows += [{"role": r, "system": system.name, "policies": ", ".join(n)} for r, n in system.roles.items()]
    return rows


def _list_metrics() -> list[dict[str, Any]]:
    return [{"metric": one.name, "what": one.label, "better": one.goal} for one in METRICS.values()]


def _list_reproductions() -> list[dict[str, Any]]:
    from hetmem.study.reproduce import reproductions

    return [{"reproduction": name} for name in reproductions()]


_LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "systems": _list_systems,
    "models": _list_models,
    "devices": _list_devices,
    "machines": _list_machines,
    "assumptions": _list_assumptions,
    "workloads": _list_workloads,
    "policies": _list_policies,
    "metrics": _list_metrics,
    "reproductions": _list_reproductions,
}
