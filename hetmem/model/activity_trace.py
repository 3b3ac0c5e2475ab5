"""Activity recorded from a real model, as an :class:`~hetmem.model.activation.ActivitySource`.

A trace is an ``.npz`` archive with one array per kind of block, named ``qkv`` or ``mlp`` (or as the user
likes): booleans ``[token, layer, neuron]``. The same array packed along its last axis by ``numpy.packbits``
with ``bitorder="little"`` is accepted as ``uint8`` beside a scalar ``<name>_neurons``, the number of neurons.
A group of neurons counts as firing when any of it does, because its weights must then be read.
"""

from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from hetmem.errors import WorkloadError
from hetmem.model.bits import Words, pack

_SUFFIX = "_neurons"


class RecordedActivity:
    """A recorded trace in its order; with ``repeat`` it starts over, else its end is an error."""

    def __init__(
        self, name: str, blocks: Mapping[str, NDArray[np.bool_]], group: int = 1, repeat: bool = False
    ) -> None:
        """Take booleans ``[token, layer, neuron]`` by kind of block; ``name`` goes into errors."""
        if not blocks:
            raise WorkloadError(name, "holds no activity")
        lengths = {block: len(bits) for block, bits in blocks.items()}
        if len(set(lengths.values())) > 1:
            raise WorkloadError(name, f"blocks differ in tokens: {lengths}")
        self.name, self.group, self.repeat = name, group, repeat
        self.n_tokens = next(iter(lengths.values()))
        if self.n_tokens == 0:
            raise WorkloadError(name, "holds no token")
        self.n_units: Mapping[str, int] = {
            block: _units(name, block, bits.shape[-1], group) for block, bits in blocks.items()
        }
        self._words = {block: _pack_groups(bits, group) for block, bits in blocks.items()}
        self._at = 0

    def next_token(self) -> Mapping[str, Words]:
        """Return the packed activity of the next token, ``[layer, word]`` by kind of block; read-only.

        Raises
        ------
        WorkloadError
            After the last token, unless the trace repeats.
        """
        if self._at == self.n_tokens:
            if not self.repeat:
                raise WorkloadError(self.name, f"has {self.n_tokens} tokens, and the run asks for more")
            self._at = 0
        self._at += 1
        return {block: words[self._at - 1] for block, words in self._words.items()}


def read_activity(path: Path, group: int = 1, repeat: bool = False) -> RecordedActivity:
    """Read a recorded trace.

    Raises
    ------
    WorkloadError
        When the file is no ``.npz`` archive, or an array in it is not as described above; it names the array.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise WorkloadError(str(path), "expected an .npz archive of named arrays, not one array")
        with archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise WorkloadError(str(path), f"cannot be read as an .npz archive: {error}") from None
    blocks = {key: _booleans(path, key, arrays) for key in arrays if not key.endswith(_SUFFIX)}
    for key in arrays:
        if key.endswith(_SUFFIX) and key.removesuffix(_SUFFIX) not in blocks:
            raise WorkloadError(f"{path}: {key}", "has no array of activity beside it")
    return RecordedActivity(str(path), blocks, group, repeat)


def _booleans(path: Path, key: str, arrays: Mapping[str, NDArray[np.generic]]) -> NDArray[np.bool_]:
    array, where = arrays[key], f"{path}: {key}"
    if array.ndim != 3:
        raise WorkloadError(where, f"expected [token, layer, neuron], not {array.ndim} dimensions")
    if array.dtype == np.bool_:
        return array.astype(np.bool_, copy=False)
    if array.dtype != np.uint8:
        raise WorkloadError(where, f"expected booleans, or uint8 packed bits, not {array.dtype}")
    if (count := arrays.get(key + _SUFFIX)) is None or count.ndim or not np.issubdtype(count.dtype, np.integer):
        raise WorkloadError(where, f"packed bits need an integer scalar {key}{_SUFFIX} beside them")
    neurons = int(count)
    if -(-neurons // 8) != array.shape[-1]:
        raise WorkloadError(where, f"{array.shape[-1]} bytes cannot hold {neurons} neurons packed")
    return np.unpackbits(array.astype(np.uint8), axis=-1, count=neurons, bitorder="little").view(np.bool_)


def _units(name: str, block: str, neurons: int, group: int) -> int:
    if group < 1 or neurons == 0 or neurons % group:
        raise WorkloadError(f"{name}: {block}", f"{neurons} neurons cannot be taken in groups of {group}")
    return neurons // group


def _pack_groups(bits: NDArray[np.bool_], group: int) -> Words:
    tokens, layers, neurons = bits.shape
    units = np.asarray(bits.reshape(tokens, layers, neurons // group, group).any(axis=-1))
    words = pack(units)
    words.flags.writeable = False
    return words


def correlated_units(fired: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the two units of the layer before that fire most like each unit, ``[layer, unit, 2]``.

    Likeness is the Pearson correlation over the tokens of ``fired[token, layer, unit]``, ties by index; the first
    layer, which has none before it, is given its own units 0 and 1 (0 twice, of a single unit).
    """
    _, n_layers, n = fired.shape
    second = min(1, n - 1)
    best = np.zeros((n_layers, n, 2), dtype=np.int32)
    best[0, :, 1] = second
    scaled = fired.astype(np.float32) - fired.mean(axis=0, dtype=np.float32)
    scaled /= np.maximum(np.sqrt((scaled**2).sum(axis=0)), np.float32(1e-12))
    for layer in range(1, n_layers):
        likeness = scaled[:, layer].T @ scaled[:, layer - 1]
        best[layer, :, 0] = likeness.argmax(axis=1)
        np.put_along_axis(likeness, best[layer, :, :1].astype(np.int64), -np.inf, axis=1)
        best[layer, :, 1] = likeness.argmax(axis=1) if second else 0
    return best
