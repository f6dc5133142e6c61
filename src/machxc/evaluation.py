"""How good a model is on labelled samples: metrics of its rankings, a batch at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from machxc.data import ReadOptions, batches, is_store, open_store
from machxc.data.formats import raw_batches
from machxc.data.options import Progress
from machxc.data.source import Source
from machxc.metrics import DEFAULT_KS, PROPENSITY_A, PROPENSITY_B, Evaluation
from machxc.model import Model
from machxc.prediction import batch_size, known_features, prediction_file
from machxc.samples import Float32, Int64


def evaluate(
    model: Model,
    data: Path | str,
    *,
    options: ReadOptions | None = None,
    ks: Sequence[int] = DEFAULT_KS,
    a: float = PROPENSITY_A,
    b: float = PROPENSITY_B,
    unknown_labels: str | None = None,
    estimator: str | None = None,
    jobs: int = 1,
    predictions: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, float]:
    """P@k, R@k, nDCG@k and PSP@k, in [0, 1], of a model on the labelled samples of ``data``; see metrics.py.

    Propensities are of the training samples, with parameters ``a`` and ``b``. Labels that the model does not have
    are an error, or count as labels that it missed (``unknown_labels`` "error" or "count"; None: an error where its
    label names are strings). ``predictions``: where to write the rankings, to the largest of ``ks``; a file as
    `machxc.prediction.predict` makes it. Keys: "n_samples", "unknown_labels", "P@1", "R@1", ...

    DataError for what is wrong with the data, SettingError for a parameter out of its bounds, OutputError as `predict`.
    """
    evaluation = Evaluation(ks, model.data.label_counts, model.n_samples, a, b)
    k = max(evaluation.ks)
    known = {"names": model.names, "unknown_labels": unknown_labels, **known_features(model)}
    n_unknown = 0
    with _file_or_nothing(predictions, model, k, overwrite=overwrite) as write:
        for batch in batches(data, options, size=batch_size(k), progress=progress, **known):
            ids, scores = model.top_k(batch.samples.features, k, estimator=estimator, jobs=jobs)
            evaluation.add(ids, batch.samples.labels, batch.unknown)
            n_unknown += batch.unknown_labels
            write(ids, scores)
    return {**evaluation.result(), "unknown_labels": n_unknown}


@contextlib.contextmanager
def _file_or_nothing(
    path: Path | str | None, model: Model, k: int, *, overwrite: bool
) -> Iterator[Callable[[Int64, Float32], None]]:
    """Where to put rankings: in a file of predictions, or nowhere."""
    if path is None:
        yield lambda ids, scores: None
        return
    with prediction_file(path, model.names, k, overwrite=overwrite) as file:
        yield file.add


def check_samples(data: Path | str, options: ReadOptions | None = None) -> None:
    """Read a file of samples to its end and forget them: DataError, as any reader, for what is wrong with it.

    Ask this of test data before training, not after. Whether a model has the labels is not known then.
    """
    if is_store(data):
        open_store(data)
        return
    with Source(data) as source:
        for _ in raw_batches(source, options or ReadOptions()):
            pass
