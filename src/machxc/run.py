"""A run: train from a file to a model folder so that nothing is lost when it is killed.

Beside the model-to-be, ``OUTPUT.machxc-run`` holds what the run has done so far (see runs/folder.py): what was asked,
the converted samples, checkpoints of the repetitions in training, and those that are finished. The trainers have
nothing else in common: threads of this process, tasks on a Ray cluster, or the shards of a job array.

A repetition's file appears when it is complete. When all are there the model folder is put together aside, renamed into
place, and the run folder is removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from machxc.config import Config, Settings, TextConfig
from machxc.cost import physical_memory
from machxc.data import Dataset, ReadOptions, is_store
from machxc.data.conversion import work_folder
from machxc.errors import MachxcError, ModelError, SettingError
from machxc.executors import Executor, executor_for
from machxc.facts import facts_of
from machxc.files import find_folder, output_errors, replace_folder, staging_folder
from machxc.folder import check_destination, finish_model, repetition_file
from machxc.label_counts import LabelCounts
from machxc.maps import check, guarded
from machxc.model import Model
from machxc.plan import Plan, make_plan, within_machine
from machxc.repetition.chunks import OnSamples
from machxc.repetition.loop import n_trained
from machxc.runs.asked import Asked, Execution
from machxc.runs.folder import (
    DATA,
    RUN,
    LocalFolder,
    RunFolder,
    has_work,
    is_address,
    open_folder,
    read_plan,
    run_folder,
    write_plan,
)
from machxc.runs.growing import different, grown, take_over, to_grow
from machxc.runs.locks import held, is_last, turn
from machxc.runs.prepare import OnRead, open_or_convert, prepare
from machxc.runs.watch import OnStatus, signs_of_life, watched
from machxc.runs.work import RunTask, train_group_in, train_in
from machxc.torch.device import check_device
from machxc.torch.groups import check_trainable, dealt, group_tasks
from machxc.training import Progress, run_counted

__all__ = ["Execution", "plan_run", "run_folder", "train_run", "train_shard"]

log = logging.getLogger("machxc.run")

OnPlan = Callable[[Plan, str], None]


def train_run(
    data: Path | str,
    output: Path | str,
    settings: Settings | None = None,
    *,
    options: ReadOptions | None = None,
    text: TextConfig | None = None,
    jobs: int = 1,
    memory_budget: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    execution: Execution | None = None,
    on_plan: OnPlan | None = None,
    progress: Progress | None = None,
    reading: OnRead | None = None,
    on_status: OnStatus | None = None,
) -> Model:
    """Train a model from a file of samples (or a converted store) into the model folder ``output``.

    A run that was killed goes on when the same is asked again; ``resume`` insists on that, and takes a model that is
    complete already as the result. Asked for more repetitions than the model at ``output`` has, those are added to it.
    ``overwrite`` replaces a model, and discards a run that was asked for something else. ``execution``: where
    repetitions are trained (default: ``jobs`` at a time, here). ``on_plan`` is given the plan, and why text becomes
    features as it does, before training starts; ``progress`` and ``reading`` are called now and then, and ``on_status``
    from a thread, every second, with the state of all repetitions. Raises DataError, SettingError, MemoryBudgetError,
    ClusterError, OutputError; each leaves what was there as it was.
    """
    asked = Asked(settings or Settings(), options or ReadOptions(), text, memory_budget)
    tell = _Tell(on_plan, progress, reading, on_status)
    run = _Run(data, Path(output), asked, jobs, execution or Execution(), tell, overwrite=overwrite, resume=resume)
    if run.execution.shard is not None:
        raise SettingError("a shard does not make a model: use train_shard, or leave 'shard' out")
    return run.whole()


def train_shard(
    data: Path | str,
    output: Path | str,
    execution: Execution,
    settings: Settings | None = None,
    *,
    options: ReadOptions | None = None,
    text: TextConfig | None = None,
    jobs: int = 1,
    memory_budget: int | None = None,
    on_plan: OnPlan | None = None,
    progress: Progress | None = None,
    reading: OnRead | None = None,
    on_status: OnStatus | None = None,
) -> Model | None:
    """Train one shard of a run, those repetitions that ``execution.shard`` says: the command of a job of an array.

    All shards are given the same but for their number, in any order, one after the other or at once, and more than
    once where that happens. The one that finds all repetitions finished puts the model together and returns it; the
    others return None. Else as `train_run` with ``resume``.
    """
    if execution.shard is None:
        raise SettingError("expected 'shard' to be i/n. Got none: train_run trains all repetitions")
    asked = Asked(settings or Settings(), options or ReadOptions(), text, memory_budget)
    tell = _Tell(on_plan, progress, reading, on_status)
    return _Run(data, Path(output), asked, jobs, execution, tell, overwrite=False, resume=True).shard()


def plan_run(
    data: Path | str,
    settings: Settings | None = None,
    *,
    options: ReadOptions | None = None,
    text: TextConfig | None = None,
    jobs: int = 1,
    memory_budget: int | None = None,
    device: str = "cpu",
    reading: OnRead | None = None,
) -> Plan:
    """The plan that `train_run` would follow, without training. The samples are converted in a temporary folder.

    ``device``: what is to train, which need not be there.
    """
    check_device(device)
    asked = Asked(settings or Settings(), options or ReadOptions(), text, memory_budget)
    with tempfile.TemporaryDirectory(prefix="machxc-plan-") as folder:
        dataset = open_or_convert(data, Path(folder) / DATA, asked, jobs, reading)
        return _plan(dataset, asked, jobs, device)


@dataclass(frozen=True)
class _Tell:
    """Whom to tell what."""

    on_plan: OnPlan | None
    progress: Progress | None
    reading: OnRead | None
    on_status: OnStatus | None


class _Run:
    """One call of `train_run` or `train_shard`."""

    def __init__(
        self,
        data: Path | str,
        output: Path,
        asked: Asked,
        jobs: int,
        execution: Execution,
        tell: _Tell,
        *,
        overwrite: bool,
        resume: bool,
    ) -> None:
        self.data, self.output, self.execution, self.tell = data, output, execution, tell
        self.jobs, self.threads = jobs, 1
        name = execution.run_folder or str(run_folder(output))
        self.name = name if is_address(name) else str(Path(name).absolute())  # nodes of a cluster stand elsewhere
        base = None if overwrite else to_grow(output, asked, resume=resume)
        self.base, self.overwrite, self.resume = base, overwrite, resume
        self.asked = asked if base is None else grown(base, asked)
        self.replaces = overwrite or base is not None

    @guarded()
    def whole(self) -> Model:
        """Train all repetitions that are missing, and put the model together."""
        folder = open_folder(self.name)
        if self._is_there(folder):
            return self._finished()
        self._check_cluster()
        check_destination(self.output, overwrite=self.replaces)
        with _alone(folder, resume=self.resume):
            check_destination(self.output, overwrite=self.replaces)  # another process may have finished just now
            dataset, config = self._begin(folder)
            self._train(folder, dataset, config, range(config.repetitions))
            self._publish(folder, dataset, config)
            _drop(folder)
        return Model.load(self.output, verify=False)

    @guarded()
    def shard(self) -> Model | None:
        """Train the repetitions of a shard; the model when it is complete."""
        folder = open_folder(self.name)
        self._check_cluster()
        with _shared(folder) as lock:
            with _turn(folder):
                if self._is_there(folder):
                    return self._finished()
                dataset, config = self._begin(folder)
            i, n = self.execution.shard or (0, 1)
            self._train(folder, dataset, config, range(i, config.repetitions, n))
            with _turn(folder):
                complete = self._is_there(folder) or self._publish_if_complete(folder, dataset, config)
                if complete and lock is not None and is_last(lock):
                    _drop(folder)
        return Model.load(self.output, verify=False) if complete else None

    def _check_cluster(self) -> None:
        """What the cluster cannot give is said before hours of reading."""
        if self.execution.executor == "ray":
            from machxc.executors.ray import check_cluster

            check_cluster(self.execution.address or "auto", self.execution.gpus)

    def _is_there(self, folder: RunFolder) -> bool:
        """Whether the model is complete, and that is all that is wanted."""
        if not self.resume or self.base is not None or find_folder(self.output) is None:
            return False
        return not (self.overwrite and isinstance(folder, LocalFolder) and (folder.path / RUN).exists())

    def _begin(self, folder: RunFolder) -> tuple[Dataset, Config]:
        """Convert the samples, or find them converted; plan, or find that planned."""
        dataset = prepare(
            folder,
            self.data,
            self.asked,
            overwrite=self.overwrite,
            resume=self.resume,
            jobs=self.jobs,
            reading=self.tell.reading,
        )
        plan = _plan(dataset, self.asked, self.jobs, self.execution.device)
        check_trainable(plan.config, self.execution.device)
        if self.asked.memory_budget is None:
            plan = within_machine(plan, physical_memory())
        self.jobs, self.threads = plan.jobs, plan.threads
        if self.base is not None:
            take_over(self.base, self.output, folder, dataset)
        if self.tell.on_plan is not None:
            self.tell.on_plan(plan, dataset.text_reason)
        write_plan(folder, plan.config, self.data if is_store(self.data) else None)
        return dataset, plan.config

    def _train(self, folder: RunFolder, dataset: Dataset, config: Config, numbers: range) -> None:
        missing = [r for r in numbers if not folder.is_done(r, config)]
        if len(missing) < len(numbers):
            log.info("continuing: %d of %d repetitions are there", len(numbers) - len(missing), len(numbers))
        if not missing:
            return
        with watched(folder, self.tell.on_status):
            if self.execution.executor == "ray":
                self._train_on_cluster(folder, config, missing)
            else:
                self._train_here(folder, dataset, config, missing)

    def _train_here(self, folder: RunFolder, dataset: Dataset, config: Config, missing: list[int]) -> None:
        interval = self.execution.checkpoint_interval

        groups = group_tasks(config, missing, self.execution.device)

        def work(r: int, on_samples: OnSamples) -> None:
            train_in(folder, dataset.samples, config, r, interval=interval, on_samples=on_samples, threads=self.threads)

        def work_on(r: int, on_samples: OnSamples) -> None:
            train_group_in(folder, dataset.samples, config, groups[r], interval=interval, on_samples=on_samples)

        at_a_time = len(groups) or min(self.jobs, len(missing))
        jobs = 1 if self.execution.executor == "serial" else at_a_time
        total = len(missing) * config.epochs * n_trained(config, len(dataset))
        run_counted(work_on if groups else work, list(groups or missing), total, executor_for(jobs), self.tell.progress)

    def _train_on_cluster(self, folder: RunFolder, config: Config, missing: list[int]) -> None:
        from machxc.executors.ray import RayExecutor, slots_of

        execution = self.execution
        by_kernels = execution.device == "cpu" or (execution.device == "auto" and not execution.gpus)
        by_kernels &= not config.deep
        groups: tuple[tuple[int, ...], ...] = ()
        if config.learner != "counts" and not by_kernels:
            groups = dealt(missing, slots_of(execution.address or "auto", execution.gpus))
        executor: Executor = RayExecutor(
            execution.address or "auto",
            gpus=execution.gpus,
            deadline=execution.deadline,
            attempts=execution.attempts,
            signs=signs_of_life(folder),
        )
        task = RunTask(folder.name, execution.checkpoint_interval, execution.device, groups)
        executor.run(task, [group[0] for group in groups] or missing, lambda: None)

    def _publish_if_complete(self, folder: RunFolder, dataset: Dataset, config: Config) -> bool:
        if not all(folder.is_done(r, config) for r in range(config.repetitions)):
            return False
        self._publish(folder, dataset, config)
        return True

    def _publish(self, folder: RunFolder, dataset: Dataset, config: Config) -> None:
        """Put the model folder together aside, and rename it into place."""
        check_destination(self.output, overwrite=self.replaces)
        with staging_folder(self.output) as staged:
            with output_errors(self.output):
                for r in range(config.repetitions):
                    folder.export(r, staged / repetition_file(r))
            finish_model(staged, config, dataset.names, LabelCounts.of(dataset.samples.labels), len(dataset))
            check(*dataset.arrays())
            replace_folder(staged, self.output, overwrite=self.replaces)

    def _finished(self) -> Model:
        """A model that is complete already, if it is the one that was asked for."""
        model = Model.load(self.output)
        other = different(model, self.asked)
        if other is not None:
            name, trained, given = other
            raise SettingError(
                f"{self.output} is a complete model with {name} = {trained!r}, asked is {given!r}; "
                "leave out --resume and choose another output, or --overwrite to train it anew"
            )
        log.info("%s is complete already: nothing to do", self.output)
        if not is_address(self.name):
            _drop_published(LocalFolder(self.name), self.output, model)
        return model


def _plan(dataset: Dataset, asked: Asked, jobs: int, device: str) -> Plan:
    facts, budget = facts_of(dataset.samples, text=dataset.text is not None), asked.memory_budget
    return make_plan(facts, asked.settings, text=dataset.text, jobs=jobs, memory_budget=budget, device=device)


@contextlib.contextmanager
def _alone(folder: RunFolder, *, resume: bool) -> Iterator[None]:
    """Hold the run folder alone. An error takes it away, unless there is work of hours in it."""
    if not isinstance(folder, LocalFolder):
        yield
        return
    if resume and not folder.path.is_dir():
        log.info("nothing to resume at %s: starting from the beginning", folder.path)
    with held(folder.path, shared=False):
        try:
            yield
        except MachxcError:
            if not has_work(folder) and not work_folder(folder.path / DATA).exists():
                shutil.rmtree(folder.path, ignore_errors=True)
            raise


def _shared(folder: RunFolder) -> contextlib.AbstractContextManager[int | None]:
    return held(folder.path, shared=True) if isinstance(folder, LocalFolder) else contextlib.nullcontext()


def _turn(folder: RunFolder) -> contextlib.AbstractContextManager[None]:
    return turn(folder.path) if isinstance(folder, LocalFolder) else contextlib.nullcontext()


def _drop(folder: RunFolder) -> None:
    """Remove a run that is over. One in an object store stays: the model is here, and others may want it, too."""
    if isinstance(folder, LocalFolder):
        shutil.rmtree(folder.path, ignore_errors=True)


def _drop_published(folder: LocalFolder, output: Path, model: Model) -> None:
    """Remove a run that died after its model was in place: their config and their files are the same."""
    with contextlib.suppress(OSError, ModelError):
        plan = read_plan(folder)
        same = os.path.samefile(folder.path / repetition_file(0), output / repetition_file(0))
        if same and plan is not None and plan[0] == model.config:
            shutil.rmtree(folder.path)
