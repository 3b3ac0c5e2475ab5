"""Which weights stay in GPU memory: matrices in layer order, while they fit."""

from collections.abc import Mapping, Sequence

from attrs import frozen

from hetmem.hardware.config import MachineConfig

FULLY_CONNECTED = ("qkv", "proj", "router", "up", "down")


@frozen
class LayerKind:
    """Consecutive layers with the same matrices resident: the name of the run, how many, and which matrices."""

    label: str
    count: int
    resident: frozenset[str]


def fill(n_layers: int, group_bytes: Mapping[str, int], room: int) -> list[frozenset[str]]:
    """Return the matrices of each layer that stay resident when ``room`` bytes are filled in layer order."""
    layers = []
    for _ in range(n_layers):
        held = set()
        for group in FULLY_CONNECTED:
            if 0 < group_bytes[group] <= room:
                held.add(group)
                room -= group_bytes[group]
        layers.append(frozenset(held))
    return layers


def kinds(layers: Sequence[frozenset[str]], unroll: bool) -> list[LayerKind]:
    """Return the runs of layers that are alike; each layer by itself when ``unroll``."""
    runs: list[LayerKind] = []
    for layer, resident in enumerate(layers):
        if runs and runs[-1].resident == resident and not unroll:
            runs[-1] = LayerKind(runs[-1].label, runs[-1].count + 1, resident)
        else:
            runs.append(LayerKind(f"l{layer}", 1, resident))
    return runs


def beside_stream(config: MachineConfig, head_bytes: int, buffer_bytes: int) -> int:
    """Return the GPU memory left for resident layers beside the head and the buffers that others stream through.

    A limit that a paper gives for weights counts the head, not the buffers.
    """
    room = config.gpu_usable_bytes - buffer_bytes
    limit = config.gpu_weight_bytes
    return (room if limit is None else min(room, int(limit))) - head_bytes
