"""Train a model: choose settings, train R repetitions by an executor, put them together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import numpy as np

from machxc.config import Config, Settings, TextConfig
from machxc.cost import physical_memory
from machxc.errors import DataError
from machxc.executors import Executor, executor_for
from machxc.facts import facts_of
from machxc.folder import ModelData
from machxc.label_counts import LabelCounts
from machxc.labels import LabelNames
from machxc.maps import check, guarded
from machxc.model import Model, partition_of
from machxc.plan import make_plan, within_machine
from machxc.repetition.chunks import OnSamples
from machxc.repetition.loop import n_trained, train_repetition
from machxc.samples import Array, Samples
from machxc.torch.groups import check_trainable, group_tasks

Progress = Callable[[int, int], None]
"""Called with the samples trained on so far, over all repetitions and epochs, and how many there are to be (those that
stopping early saves count as trained on)."""

Store = Callable[[int, dict[str, Array]], None]


class CancelledError(Exception):
    """Raised inside a repetition that is to end because another one failed, or the user asked to."""


@guarded()
def train(
    samples: Samples,
    names: LabelNames,
    settings: Settings | None = None,
    *,
    text: TextConfig | None = None,
    jobs: int = 1,
    memory_budget: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Model:
    """Train a model in memory.

    ``samples`` with labels in [0, K), ``names`` of the K labels, ``text``: how texts became features (None: they are
    numeric), ``jobs``: threads, one a repetition where there are as many (changes no byte of the result),
    ``memory_budget`` in bytes, ``device``: what computes ("cpu": the kernels; see `machxc.torch.device`).
    DataError when there is nothing to learn from, SettingError when settings make no sense or do not fit the budget.
    """
    _check(samples, names)
    facts = facts_of(samples, text=text is not None)
    chosen = settings or Settings()
    plan = make_plan(facts, chosen, text=text, jobs=jobs, memory_budget=memory_budget, in_memory=True)
    check_trainable(plan.config, device)
    if memory_budget is None:
        plan = within_machine(plan, physical_memory())
    repetitions: dict[int, dict[str, Array]] = {}
    numbers, store = range(plan.config.repetitions), repetitions.__setitem__
    run_repetitions(samples, plan.config, numbers, store, plan.jobs, progress, device, plan.threads)
    counts = LabelCounts.of(samples.labels)
    check(*samples.arrays())
    data = ModelData(plan.config, names, counts, len(samples), dict(sorted(repetitions.items())))
    return Model(data)


def run_repetitions(
    samples: Samples,
    config: Config,
    numbers: Iterable[int],
    store: Store,
    jobs: int,
    progress: Progress | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Train the repetitions ``numbers``, ``jobs`` at a time, and hand each one's tensors to ``store``.

    ``threads``: how many may work on one.
    """
    numbers = list(numbers)
    partition = partition_of(config)
    groups = group_tasks(config, numbers, device)
    each = config.epochs * n_trained(config, len(samples))
    if groups:
        from machxc.torch.train import train_group

        def work_on(r: int, on_samples: OnSamples) -> None:
            group = groups[r]
            train_group(
                samples, config, partition, group.numbers, group.device, store, lambda numbers, n: on_samples(n)
            )

        run_counted(work_on, list(groups), len(numbers) * each, executor_for(len(groups)), progress)
        return

    def work(r: int, on_samples: OnSamples) -> None:
        store(r, train_repetition(samples, config, partition, r, on_samples, threads=threads))

    run_counted(work, numbers, len(numbers) * each, executor_for(min(jobs, len(numbers))), progress)


def run_counted(
    work: Callable[[int, OnSamples], None],
    numbers: list[int],
    total: int,
    executor: Executor,
    progress: Progress | None = None,
) -> None:
    """Call ``work(r, on_samples)`` for each repetition by an executor of this process; all count ``total`` samples."""
    counter = _Counter(progress, total)
    try:
        executor.run(lambda r: work(r, counter.add), numbers, counter.cancel)
    except CancelledError:  # a sibling ended before the repetition in which progress raised
        raise counter.raised or CancelledError from None


def _check(samples: Samples, names: LabelNames) -> None:
    samples.features.check()
    samples.labels.check()
    if samples.weights is not None and not (np.isfinite(samples.weights) & (samples.weights >= 0)).all():
        raise DataError("expected sample weights that are finite and not negative")
    if len(names) != samples.labels.n_labels:
        raise DataError(f"expected as many label names as labels ({samples.labels.n_labels}), got {len(names)}")


class _Counter:
    """Adds up the progress of repetitions that run side by side, and can end them."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._lock = threading.Lock()
        self._cancelled = False
        self.raised: BaseException | None = None  # by progress: nothing is counted after that

    def add(self, n: int) -> None:
        """Count n samples more; raises CancelledError once the run was cancelled, or progress raised."""
        with self._lock:
            if self._cancelled:
                raise CancelledError
            self._done += n
            if self._progress is None:
                return
            try:
                self._progress(self._done, self._total)
            except BaseException as error:
                self.raised, self._cancelled = error, True
                raise

    def cancel(self) -> None:
        """Let all repetitions end at their next chunk."""
        self._cancelled = True
