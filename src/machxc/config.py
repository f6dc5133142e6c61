"""What a user may set, with bounds, and what those settings became.

`Settings` is what the user says: every field may be left None, and then it chooses itself (see plan.py, which also
gives the reason). `Config` is the outcome, complete: with the data and a repetition's number it determines every byte
of that repetition. Both are plain data; a `Config` is stored as JSON in the model folder, `Settings` come from TOML.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machxc.errors import ModelError, SettingError

MAX_ID = 2**32 - 1
# of a stored linear repetition (see stored.py): distinct weights, and buckets that can be told apart
LEVELS, MOST_BUCKETS = 1 << 8, 1 << 24
LEARNERS = ("gradient", "counts")
LOSSES = ("softmax", "bce")
NORMALISATIONS = ("none", "layer")
ESTIMATORS = ("mean", "unbiased", "log-probability", "logit", "min", "median")

# name -> (type, lowest, highest) or a tuple of choices: one table for Settings, Config and the estimator.
BOUNDS: dict[str, tuple[type, float, float] | tuple[str, ...]] = {
    "learner": LEARNERS,
    "repetitions": (int, 1, 4096),
    "buckets": (int, 1, MAX_ID),
    "hidden": (int, 0, 65536),
    "normalisation": NORMALISATIONS,
    "hidden_dropout": (float, 0.0, 0.99),
    "negatives": (int, 0, MAX_ID),
    "loss": LOSSES,
    "epochs": (int, 1, 10_000),
    "learning_rate": (float, 1e-9, 1e6),
    "dropout": (float, 0.0, 0.99),
    "smoothing": (float, 1e-6, 1e9),
    "left_out": (int, 0, MAX_ID),
    "associations": (int, 0, MAX_ID),
    "prune": (float, 0.0, 1e6),
    "feature_bits": (int, 1, 32),
    "min_count": (int, 1, MAX_ID),
    "sublinear_tf": (bool, 0, 1),
    "idf": (bool, 0, 1),
    "l2": (bool, 0, 1),
    "estimator": ESTIMATORS,
    "validation_fraction": (float, 0.0, 0.5),
    "patience": (int, 1, 10_000),
    "seed": (int, 0, 2**63 - 1),
    "words": (int, 0, 5),
    "chars_min": (int, 0, 16),
    "chars_max": (int, 0, 16),
    "fold": (bool, 0, 1),
    "n_labels": (int, 1, MAX_ID),
    "n_features": (int, 1, 2**32),
}
# settings that may also be a list: how many ints it may have, and the highest
LISTS = {"hidden": (16, 65536)}


def check_bound(owner: str, name: str, value: Any) -> None:
    """Raise SettingError, naming the parameter, its bounds and the value, when the value is out of its bounds."""
    bound = BOUNDS[name]
    if name in LISTS and isinstance(value, list | tuple):
        _check_list(owner, name, value)
        return
    if not isinstance(bound[0], type):
        if value not in bound:
            raise SettingError(f"The '{name}' parameter of {owner} must be one of {bound}. Got {value!r} instead.")
        return
    kind, low, high = bound
    number = isinstance(value, bool) if kind is bool else isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:
        or_list = f", or {_expected_list(name)}" if name in LISTS else ""
        raise SettingError(
            f"The '{name}' parameter of {owner} must be {_expected(kind, low, high)}{or_list}. Got {value!r} instead."
        )


def _check_list(owner: str, name: str, values: list[Any] | tuple[Any, ...]) -> None:
    most, high = LISTS[name]
    if not 1 <= len(values) <= most or not all(type(value) is int and 1 <= value <= high for value in values):
        raise SettingError(
            f"The '{name}' parameter of {owner} must be {_expected_list(name)}, or one number. Got {values!r} instead."
        )


def _expected_list(name: str) -> str:
    most, high = LISTS[name]
    return f"a list of 1 to {most} ints in [1, {high}]"


def one_or_tuple(value: Any) -> Any:
    """A list as a tuple, and a list of one as that one: what is equal is the same."""
    if not isinstance(value, list | tuple):
        return value
    return value[0] if len(value) == 1 else tuple(value)


def _expected(kind: type, low: float, high: float) -> str:
    return "True or False" if kind is bool else f"{'an int' if kind is int else 'a number'} in [{low}, {high}]"


def layer_name(number: int) -> str:
    """What the weights of hidden layer ``number`` >= 1 are called where they are kept; its bias is ``.._bias``."""
    return f"layer_{number}"


@dataclass(frozen=True)
class TextConfig:
    """How text becomes token hashes (features/text.py): which n-grams are taken, of which letters.

    ``words``: word n-grams of 1 to this many words (0: none). ``chars_min``, ``chars_max``: character n-grams of that
    many characters within a word and its two edges (0, 0: none). ``fold``: letters are compared without their
    diacritical marks.
    """

    words: int = 2
    chars_min: int = 0
    chars_max: int = 0
    fold: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_bound("TextConfig", field.name, getattr(self, field.name))
        if (self.chars_min == 0) != (self.chars_max == 0) or self.chars_min > self.chars_max:
            raise SettingError(
                "The 'chars_min' and 'chars_max' parameters of TextConfig must be both 0, or 1 <= chars_min <= "
                f"chars_max. Got {self.chars_min} and {self.chars_max} instead."
            )
        if not self.words and not self.chars_max:
            raise SettingError("TextConfig must take words or characters: set 'words' or 'chars_min' and 'chars_max'.")


@dataclass(frozen=True)
class Settings:
    """What a user may set for training. None: it chooses itself from the data (plan.py tells how, and why).

    learner ("gradient": weights are learnt step by step; "counts": they follow from how often features meet buckets),
    repetitions R, buckets B (a repetition), hidden (units; 0 is the linear model; a list: of each layer), normalisation
    (of hidden layers: "none" or "layer"), hidden_dropout (probability that a hidden unit is left out), negatives
    (sampled buckets a sample; 0 is all of them), loss ("softmax" or "bce"), epochs, learning_rate (initial, decays
    linearly to 0), dropout (probability that an input feature is left out), smoothing (counts: background samples added
    to those of a bucket), left_out (counts: samples that are left out of their own bucket, to learn how much each
    feature says), associations (counts: samples that show which features go together), prune (linear model: weights
    nearer to 0 are not stored), feature_bits (features are hashed to 2**bits slots), min_count (slots seen in fewer
    training samples are dropped), sublinear_tf, idf, l2 (weighting of features), estimator (how R bucket scores become
    a label's score), validation_fraction and patience (early stopping: held-out part of the samples; epochs without
    improvement), seed.
    """

    learner: str | None = None
    repetitions: int | None = None
    buckets: int | None = None
    hidden: int | Sequence[int] | None = None
    normalisation: str | None = None
    hidden_dropout: float | None = None
    negatives: int | None = None
    loss: str | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    dropout: float | None = None
    smoothing: float | None = None
    left_out: int | None = None
    associations: int | None = None
    prune: float | None = None
    feature_bits: int | None = None
    min_count: int | None = None
    sublinear_tf: bool | None = None
    idf: bool | None = None
    l2: bool | None = None
    estimator: str | None = None
    validation_fraction: float | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                check_bound("Settings", field.name, value)
        object.__setattr__(self, "hidden", one_or_tuple(self.hidden))

    @classmethod
    def from_toml(cls, path: Path | str) -> Settings:
        """Settings from a TOML file of ``name = value`` lines; SettingError names what is unknown or out of bounds."""
        try:
            with open(path, "rb") as file:
                return cls(**_known(cls, tomllib.load(file), str(path)))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingError(f"{path}: cannot read settings: {error}") from error

    def to_toml(self) -> str:
        """The settings that are not None, as TOML that `from_toml` reads back."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items())


@dataclass(frozen=True)
class Config:
    """Every setting of a model, chosen. With the data and a repetition's number it determines that repetition's bytes.

    The fields of `Settings`, none of them None, and: ``n_labels`` K, ``n_features`` D (2**32 for hashed text),
    ``text`` (how text becomes features; None for numeric features).
    """

    n_labels: int
    n_features: int
    learner: str
    repetitions: int
    buckets: int
    hidden: int | tuple[int, ...]
    negatives: int
    loss: str
    epochs: int
    learning_rate: float
    dropout: float
    smoothing: float
    left_out: int
    associations: int
    prune: float
    feature_bits: int
    min_count: int
    sublinear_tf: bool
    idf: bool
    l2: bool
    estimator: str
    validation_fraction: float
    patience: int
    seed: int
    text: TextConfig | None = None
    normalisation: str = "none"
    hidden_dropout: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "text":
                check_bound("Config", field.name, getattr(self, field.name))
        object.__setattr__(self, "hidden", one_or_tuple(self.hidden))

    @property
    def layers(self) -> tuple[int, ...]:
        """The units of each hidden layer; none: the linear model."""
        if isinstance(self.hidden, tuple):
            return self.hidden
        return (self.hidden,) if self.hidden else ()

    @property
    def deep(self) -> bool:
        """Whether it takes PyTorch to train it: the kernels have one hidden layer, without normalisation or dropout."""
        return len(self.layers) > 1 or self.normalisation != "none" or self.hidden_dropout > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Config:
        """The inverse of `to_dict`; ModelError when a field is missing, unknown, mistyped or out of its bounds."""
        try:
            known = _known(cls, data, "config")
            text = known.pop("text", None)
            return cls(**known, text=None if text is None else TextConfig(**_known(TextConfig, text, "config: text")))
        except (SettingError, TypeError) as error:
            raise ModelError(f"the model's configuration is not valid: {error}") from error


def _known(cls: type, data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise SettingError(f"{where}: expected a table of settings, got {type(data).__name__}")
    names = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(map(str, data)) - names)
    if unknown:
        raise SettingError(f"{where}: unknown setting {unknown[0]!r}; expected one of {sorted(names)}")
    return dict(data)
