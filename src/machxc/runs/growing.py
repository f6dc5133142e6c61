"""Repetitions come and go: a model that is to have more of them, or lacks some, keeps those that it has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from machxc.config import Settings
from machxc.data import Dataset
from machxc.errors import DataError, ModelError, SettingError
from machxc.files import find_folder, link_file
from machxc.folder import repetition_file
from machxc.label_counts import LabelCounts
from machxc.model import Model
from machxc.runs.asked import Asked
from machxc.runs.folder import LocalFolder, RunFolder


def to_grow(output: Path | str, asked: Asked, *, resume: bool) -> Model | None:
    """The model at ``output`` when what is asked are repetitions for it: more than it has, or those that it lacks.

    More are asked for by a number of repetitions above the model's; those that are missing by the same number, or by
    ``resume``. SettingError when another setting is not the model's: that would be another model.
    """
    if find_folder(output) is None:
        return None
    try:
        model = Model.load(output, verify=False)
    except ModelError:
        return None  # no model, or a damaged one: whoever comes next says so
    wanted = asked.settings.repetitions or (model.config.repetitions if resume else 0)
    if wanted < model.config.repetitions or wanted == model.n_repetitions:
        return None
    other = different(model, asked, besides=("repetitions",))
    if other is not None:
        name, trained, given = other
        raise SettingError(
            f"{output} is a model with {name} = {trained!r}, asked is {given!r}: repetitions can be added to it "
            "with its own settings only. Leave the setting out, choose another output, or --overwrite to train it anew"
        )
    return Model.load(output)


def different(model: Model, asked: Asked, besides: tuple[str, ...] = ()) -> tuple[str, object, object] | None:
    """The first setting in which a model is not as asked: its name, the model's value, and that asked for."""
    given = {name: value for name, value in dataclasses.asdict(asked.settings).items() if value is not None}
    trained = model.config.to_dict()
    for name in sorted(given.keys() - set(besides), key=lambda name: (name == "seed", name)):
        if trained[name] != given[name]:
            return name, trained[name], given[name]
    if asked.text not in (None, model.config.text):
        return "text", model.config.text, asked.text
    return None


def grown(model: Model, asked: Asked) -> Asked:
    """What is to be asked of the run: the settings of the model, with as many repetitions as asked for."""
    of_model = {field.name: getattr(model.config, field.name) for field in dataclasses.fields(Settings)}
    wanted = max(model.config.repetitions, asked.settings.repetitions or 0)
    settings = Settings(**{**of_model, "repetitions": wanted})
    return dataclasses.replace(asked, settings=settings, text=model.config.text, memory_budget=None)


def take_over(model: Model, output: Path | str, folder: RunFolder, dataset: Dataset) -> None:
    """Put the repetitions of a model into the run that adds to it; DataError when it learns from other samples."""
    same = (
        len(dataset) == model.n_samples
        and dataset.names == model.names
        and LabelCounts.of(dataset.samples.labels) == model.data.label_counts
    )
    if not same:
        raise DataError(
            f"the model {output} was trained on other samples ({model.n_samples:,}, with {len(model.names):,} labels; "
            f"here are {len(dataset):,}, with {len(dataset.names):,}). Give those, or choose another output"
        )
    if not isinstance(folder, LocalFolder):
        raise SettingError("repetitions can be added with a run folder on the disk only: leave out 'run_folder'")
    there = set(folder.names())
    for r in model.numbers:
        if repetition_file(r) not in there:
            link_file((find_folder(output) or Path(output)) / repetition_file(r), folder.path / repetition_file(r))
