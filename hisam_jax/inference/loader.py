"""Loads what `hisam export` wrote; needs numpy and jax only (and the flatbuffers that `jax.export` reads with).

It stands in every release as `load.py`:

release = load("RELEASE")
state = release.read([["item-1", "item-2"]])
release.recommend(state, k=10)          # [[("item-9", 3.2), ...]]
"""

import hashlib
import json
import pathlib

import jax
import numpy as np

NO_SCORE = -1e29


class BrokenRelease(ValueError):
    """A release with a file missing, altered, or of another one."""


def load(folder):
    """A release, every file checked against its manifest.

    Raises:
        BrokenRelease: names the file.
    """
    folder = pathlib.Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise BrokenRelease(f"{folder / 'manifest.json'}: {error}; expected what `hisam export` wrote") from error
    for name, checksum in manifest["files"].items():
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != checksum:
            raise BrokenRelease(f"{file}: missing, or not of release {manifest['release']}; export it again")
    return Release(folder, manifest)


class Release:
    """Functions of a trained model over its items.

    Attributes:
        manifest: `release`, `items`, `window`, `ways`, `functions`, `platforms`, `files`.
        item_ids: the catalogue's, by index.
    """

    def __init__(self, folder, manifest):
        self.manifest = manifest
        with np.load(folder / "arrays.npz") as arrays:
            self.arrays = _nested({name: _typed(arrays[name], manifest["dtypes"].get(name)) for name in arrays.files})
        self.item_ids = json.loads((folder / "items.json").read_text())
        self._index = {item: index for index, item in enumerate(self.item_ids)}
        self._functions = {
            name: jax.export.deserialize((folder / f"{name}.stablehlo").read_bytes())
            for name in manifest["functions"]
        }  # fmt: skip

    def call(self, name, *arguments):
        """An exported function on plain trees of arrays; see `manifest["functions"]` for its arguments."""
        return jax.jit(self._functions[name].call)(self.arrays, *arguments)

    def read(self, histories, actions=None, gaps=None):
        """The state of each user's items, oldest first; at most `window` of them count.

        Args:
            histories: item ids of each user.
            actions: int, 0 unknown, else twice the rating; None: unknown.
            gaps: log1p of the hours since the event before; None: 0.

        Raises:
            KeyError: an item that the release does not know.
        """
        window, rows = self.manifest["window"], len(histories)
        batch = {name: np.zeros((rows, window), np.int32) for name in ("item", "action", "segment")}
        batch["gap"] = np.zeros((rows, window), np.float32)
        for row, history in enumerate(histories):
            items = [self._index[item] for item in history][-window:]
            batch["item"][row, : len(items)] = items
            batch["segment"][row, : len(items)] = 1
            for name, values in (("action", actions), ("gap", gaps)):
                if values is not None and items:
                    batch[name][row, : len(items)] = values[row][-window:]
        state = self.call("read", batch)
        return {**state, "seen": [[self._index[item] for item in history] for history in histories]}

    def recommend(self, state, k=10, way=None, hide_seen=True):
        """`[[(item id, score), ...]]` of each user, best first, by one of the manifest's `ways`, its first by default.

        Raises:
            ValueError: a way that the model was not trained for.
        """
        way = way or self.manifest["ways"][0]
        if way not in self.manifest["ways"]:
            raise ValueError(f"way {way!r}; expected {' or '.join(self.manifest['ways'])}")
        allowed = np.ones((len(state["seen"]), len(self.item_ids)), bool)
        for row, seen in enumerate(state["seen"]):
            allowed[row, seen if hide_seen else []] = False
        item, score = map(np.asarray, self.call(way, _arrays_of(state), allowed))
        return [
            [(self.item_ids[i], float(s)) for i, s in zip(item[row][:k], score[row][:k], strict=True) if s > NO_SCORE]
            for row in range(len(allowed))
        ]

    def rank(self, state, candidates):
        """float32 `[users, candidates]`: click logits of as many candidate item ids for each user.

        Raises:
            ValueError: the model has no ranking head.
        """
        if "rank" not in self.manifest["functions"]:
            raise ValueError("this release cannot rank; expected a model with a ranking head")
        item = np.array([[self._index[name] for name in row] for row in candidates], np.int32)
        return np.asarray(self.call("rank", _arrays_of(state), item))


def _arrays_of(state):
    return {name: value for name, value in state.items() if name != "seen"}


def _typed(values, dtype):
    return values if dtype is None else values.view(jax.numpy.dtype(dtype))


def _nested(flat):
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
