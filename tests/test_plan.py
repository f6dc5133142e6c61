from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machxc.catalogue import Catalogue
from machxc.config import BOUNDS, Config, Settings, TextConfig
from machxc.cost import RUNTIME, cost_of, physical_memory
from machxc.errors import DataError, MemoryBudgetError, SettingError
from machxc.facts import Facts, facts_of
from machxc.features.text import token_features
from machxc.model import partition_of
from machxc.plan import MOST_LINEAR_BUCKETS, Plan, make_plan, within_machine
from machxc.repetition.counting import count_repetition
from machxc.samples import Samples

TITLES = Facts(
    n_samples=60_000, n_labels=40_000, n_seen=30_000, n_pairs=200_000, most_labels=20, n_features=2**32,
    n_values=900_000, n_distinct=150_000, n_repeated=60_000, n_frequent=40_000, counts=True, dense=False, text=True,
)  # fmt: skip
FEW = Facts(
    n_samples=200, n_labels=5, n_seen=5, n_pairs=200, most_labels=1, n_features=30, n_values=6000, n_distinct=30,
    n_repeated=30, n_frequent=30, counts=False, dense=True, text=False,
)  # fmt: skip
ALWAYS_REASONED = {"loss", "hidden", "buckets", "repetitions", "epochs", "learning_rate", "feature_bits", "l2"}
OF_STEPS = {"loss", "hidden", "epochs", "learning_rate"}  # not reasoned where weights are counted
NAMES = [field.name for field in dataclasses.fields(Settings)]


def plan_of(facts: Facts, settings: Settings | None = None, **asked: Any) -> Plan:
    return make_plan(facts, settings or Settings(), text=TextConfig() if facts.text else None, **asked)


@st.composite
def any_facts(draw: st.DrawFn) -> Facts:
    """Counts that some data could have."""
    n, k = draw(st.integers(1, 10**9)), draw(st.integers(1, 2**32 - 1))
    text = draw(st.booleans())
    n_features = 2**32 if text else draw(st.integers(1, 2**32))
    distinct = draw(st.integers(0, min(n_features, 10**8)))
    repeated = draw(st.integers(0, distinct))
    per_sample = draw(st.integers(1, 1000))
    return Facts(
        n_samples=n, n_labels=k, n_seen=draw(st.integers(1, k)), n_pairs=n * draw(st.integers(1, 100)),
        most_labels=draw(st.integers(1, 1000)), n_features=n_features, n_values=n * per_sample,
        n_distinct=distinct, n_repeated=repeated, n_frequent=draw(st.integers(0, repeated)),
        counts=draw(st.booleans()), dense=not text and draw(st.booleans()), text=text,
    )  # fmt: skip


@given(any_facts(), st.integers(-3, 100), st.booleans())
@settings(deadline=None, max_examples=300)
def test_every_setting_chooses_itself_within_its_bounds(facts: Facts, jobs: int, in_memory: bool) -> None:
    plan = plan_of(facts, jobs=jobs, in_memory=in_memory)
    assert all(getattr(plan.config, name) is not None for name in NAMES)  # bounds are checked by Config
    counted = plan.config.learner == "counts"
    assert plan.reasons.keys() >= (
        ALWAYS_REASONED - OF_STEPS | {"learner", "smoothing", "left_out", "associations"}
        if counted
        else ALWAYS_REASONED
    )
    assert all(plan.reasons.values())
    assert (plan.config.n_labels, plan.config.n_features) == (facts.n_labels, facts.n_features)
    assert counted or plan.config.layers or plan.config.buckets <= MOST_LINEAR_BUCKETS
    assert 1 <= plan.jobs <= plan.config.repetitions
    assert plan.serving_bytes > RUNTIME
    assert RUNTIME < plan.cost.training(1) <= plan.training_bytes or in_memory
    assert plan.cpu_seconds > 0
    assert Config.from_dict(json.loads(json.dumps(plan.to_dict()))["config"]) == plan.config


@given(any_facts(), st.integers(1, 100))
@settings(deadline=None, max_examples=50)
def test_the_number_of_jobs_changes_no_setting(facts: Facts, jobs: int) -> None:
    assert plan_of(facts, jobs=jobs).config == plan_of(facts).config


GIVEN: dict[str, Any] = {
    "learner": "gradient", "repetitions": 7, "buckets": 123, "hidden": 33, "negatives": 5, "loss": "softmax",
    "normalisation": "none", "hidden_dropout": 0.25,
    "epochs": 11, "learning_rate": 0.125, "dropout": 0.25, "smoothing": 2.5, "left_out": 7, "associations": 11,
    "prune": 0.5, "feature_bits": 13, "min_count": 4, "sublinear_tf": False, "idf": False, "l2": False,
    "estimator": "median",
    "validation_fraction": 0.125, "patience": 9, "seed": 42,
}  # fmt: skip


def test_what_is_given_is_kept() -> None:
    assert set(GIVEN) == set(NAMES) <= set(BOUNDS)
    plan = plan_of(TITLES, Settings(**GIVEN))
    assert {name: getattr(plan.config, name) for name in NAMES} == GIVEN
    assert plan.reasons == dict.fromkeys(set(GIVEN) - {"seed"}, "as asked")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "negatives"])
def test_one_that_is_given_is_kept(name: str) -> None:
    plan = plan_of(TITLES, Settings(**{name: GIVEN[name]}))
    assert getattr(plan.config, name) == GIVEN[name]
    assert plan.reasons.get(name, "as asked") == "as asked"
    assert sum(reason == "as asked" for reason in plan.reasons.values()) == int(name != "seed")


def test_the_loss_follows_from_the_labels_of_a_sample() -> None:
    assert plan_of(FEW).config.loss == "softmax"
    several = dataclasses.replace(FEW, most_labels=2)
    assert plan_of(several).config.loss == "bce"
    assert plan_of(several, Settings(negatives=50, buckets=799)).config.loss == "bce"
    assert plan_of(several, Settings(negatives=50, buckets=800)).config.loss == "softmax"
    assert plan_of(several, Settings(negatives=50, buckets=800, loss="bce")).config.loss == "bce"


@pytest.mark.parametrize("k", [1, 2, 3, 100])
def test_few_labels_get_a_bucket_each(k: int) -> None:
    config = plan_of(dataclasses.replace(FEW, n_labels=k, n_seen=k)).config
    assert config.buckets >= max(2, k)
    assert config.buckets & (config.buckets - 1) == 0  # a power of two: the hash is one-to-one


def test_many_labels_share_buckets() -> None:
    config = plan_of(TITLES).config
    assert config.buckets < 40_000 // 10
    assert config.repetitions > 4


@pytest.mark.parametrize(
    ("k", "buckets", "repetitions", "prune", "rate"),
    [(256, 256, 4, 0.3, 3.0), (257, 250, 24, 0.7, 5.0), (1000, 250, 24, 0.7, 5.0), (1001, 250, 32, 0.5, 5.0)],
)
def test_the_fewer_labels_share_buckets_the_fewer_weights_are_kept(
    k: int, buckets: int, repetitions: int, prune: float, rate: float
) -> None:
    facts = dataclasses.replace(TITLES, n_samples=20_000, n_labels=k, n_seen=k)
    config = plan_of(facts).config
    assert (config.buckets, config.repetitions, config.prune) == (buckets, repetitions, prune)
    assert config.learning_rate == rate
    hidden = plan_of(facts, Settings(hidden=64)).config
    assert (hidden.repetitions, hidden.prune) == (min(repetitions, 16), 0.0)


def test_every_column_gets_a_slot_where_there_is_room() -> None:
    for n_features in (1, 2, 30, 1000, 1024, 1025):
        config = plan_of(dataclasses.replace(FEW, n_features=n_features)).config
        assert 2**config.feature_bits >= n_features


def test_nothing_to_learn_is_an_error() -> None:
    with pytest.raises(DataError, match=r"nothing to learn: 0 samples"):
        plan_of(dataclasses.replace(FEW, n_samples=0))
    with pytest.raises(DataError, match=r"nothing to learn: 200 samples with 0 labels"):
        plan_of(dataclasses.replace(FEW, n_seen=0))


def test_negatives_need_a_hidden_layer() -> None:
    with pytest.raises(SettingError, match=r"'negatives' needs a hidden layer.*Set 'hidden'"):
        plan_of(TITLES, Settings(negatives=10, hidden=0))
    assert plan_of(TITLES, Settings(negatives=10, hidden=8)).config.negatives == 10
    assert plan_of(TITLES, Settings(negatives=10)).config.hidden == 128
    assert plan_of(TITLES, Settings(buckets=65537)).config.hidden == 128


def test_a_linear_model_has_buckets_of_16_bits() -> None:
    assert plan_of(TITLES, Settings(hidden=0, buckets=65536)).config.buckets == 65536
    with pytest.raises(SettingError, match=r"'buckets'.*\[1, 65536\]. Got 65537 instead; set 'hidden'"):
        plan_of(TITLES, Settings(hidden=0, buckets=65537))
    assert plan_of(TITLES, Settings(hidden=8, buckets=65537)).config.buckets == 65537


# ---- weights that are counted


RARE = dataclasses.replace(TITLES, n_pairs=90_000, most_labels=3)  # 3 samples a label, 1.5 labels a sample


def test_weights_are_counted_where_many_labels_have_few_samples() -> None:
    plan = plan_of(RARE)
    config = plan.config
    assert (config.learner, config.loss, config.hidden, config.epochs, config.prune) == ("counts", "softmax", 0, 1, 0.0)
    assert (config.sublinear_tf, config.idf, config.min_count) == (False, False, 1)
    assert (config.repetitions, config.buckets) == (1, 65536)  # one-to-one: the next power of two
    assert plan.reasons["learner"] == "30,000 labels with 3.0 samples each: too few to take steps on"
    assert plan.reasons["smoothing"] == "background samples a bucket"


@pytest.mark.parametrize(
    ("change", "learner"),
    [
        ({"n_seen": 10_000}, "counts"),
        ({"n_seen": 9_999}, "gradient"),
        ({"n_pairs": 119_999}, "counts"),
        ({"n_pairs": 120_000}, "gradient"),  # two labels a sample
        ({"n_seen": 10_000, "n_samples": 199_999, "n_pairs": 199_999}, "counts"),
        ({"n_seen": 10_000, "n_samples": 200_000, "n_pairs": 200_000}, "gradient"),  # 20 samples a label
        ({"counts": False}, "gradient"),
        ({"text": False, "dense": True}, "counts"),
    ],
)
def test_where_counting_begins(change: dict[str, Any], learner: str) -> None:
    assert plan_of(dataclasses.replace(RARE, **change)).config.learner == learner


def test_labels_share_buckets_where_there_are_too_many_for_one_each() -> None:
    million: dict[str, Any] = {"n_seen": 10**6, "n_samples": 10**7, "n_pairs": 10**7}
    one = plan_of(dataclasses.replace(RARE, **million, n_labels=1 << 20)).config
    assert (one.repetitions, one.buckets) == (1, 1 << 20)
    shared = plan_of(dataclasses.replace(RARE, **million, n_labels=(1 << 20) + 1)).config
    assert (shared.repetitions, shared.buckets) == (3, 1 << 20)
    assert plan_of(RARE, Settings(buckets=1000)).config.repetitions == 3
    assert plan_of(RARE, Settings(buckets=65536)).config.repetitions == 1


STEPPED: dict[str, Any] = {
    "hidden": 32, "negatives": 4, "epochs": 3, "learning_rate": 2.0, "dropout": 0.1, "validation_fraction": 0.1,
    "patience": 3,
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [*STEPPED.items(), ("loss", "softmax"), ("loss", "bce"), ("hidden", 0)])
def test_a_setting_of_steps_asks_for_steps(name: str, value: Any) -> None:
    config = plan_of(RARE, Settings(**{name: value})).config
    assert config.learner == "gradient"
    assert getattr(config, name) == value


def test_either_learner_can_be_asked_for() -> None:
    assert plan_of(RARE, Settings(learner="gradient")).config.learner == "gradient"
    plan = plan_of(TITLES, Settings(learner="counts", smoothing=4.0, prune=0.25))
    assert (plan.config.learner, plan.config.smoothing, plan.config.prune) == ("counts", 4.0, 0.25)
    assert plan.reasons["learner"] == "as asked"
    assert plan_of(TITLES, Settings(learner="counts", loss="softmax", hidden=0, dropout=0.0)).config.learner == "counts"


@pytest.mark.parametrize(("name", "value"), STEPPED.items())
def test_counting_takes_no_steps(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=rf"'{name}' needs learner='gradient'.*Got learner='counts'"):
        plan_of(RARE, Settings(learner="counts", **{name: value}))


def test_counting_needs_a_softmax_and_counts() -> None:
    with pytest.raises(SettingError, match=r"learner='counts' needs loss='softmax'.*Got loss='bce'"):
        plan_of(RARE, Settings(learner="counts", loss="bce"))
    with pytest.raises(SettingError, match=r"'buckets'.* of counted weights must be .* \[1, 16777216\]. Got 16777217"):
        plan_of(RARE, Settings(learner="counts", buckets=2**24 + 1))
    with pytest.raises(SettingError, match=r"learner='counts' needs features that are counts"):
        plan_of(dataclasses.replace(RARE, counts=False), Settings(learner="counts"))


def test_a_budget_leaves_counted_labels_their_buckets() -> None:
    free = plan_of(RARE)
    tight = plan_of(RARE, memory_budget=free.training_bytes - 1)
    assert tight.config.feature_bits < free.config.feature_bits
    with pytest.raises(MemoryBudgetError, match="buckets=65536"):
        plan_of(RARE, memory_budget=10**6)


@pytest.mark.parametrize(
    ("n_labels", "n_samples", "text"),
    [
        (1024, 1024, TextConfig(words=1)),
        (1024, 1024, TextConfig(words=1, chars_min=2, chars_max=4, fold=True)),
        (1024, 8192, TextConfig(words=2)),
    ],
    ids=["words", "characters", "word pairs"],
)
def test_counted_weights_take_the_bytes_that_were_planned(n_labels: int, n_samples: int, text: TextConfig) -> None:
    texts, labels = next(Catalogue(n_labels).batches(n_samples))
    samples = Samples(token_features(texts, text), labels)
    plan = make_plan(facts_of(samples, text=True), Settings(learner="counts"), text=text)
    tensors = count_repetition(samples, plan.config, partition_of(plan.config), 0)
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    entries = sizes.pop("entries")
    assert plan.cost.stored - sum(sizes.values()) == pytest.approx(entries, rel=0.25)
    assert plan.cost.stored - plan.cost.model + 4 * n_labels == 0  # there is one repetition


# ---- the memory budget


def test_a_budget_that_is_met_changes_nothing() -> None:
    free = plan_of(TITLES, jobs=4)
    assert plan_of(TITLES, jobs=4, memory_budget=free.training_bytes) == free


def test_a_tighter_budget_runs_fewer_repetitions_at_a_time() -> None:
    free = plan_of(TITLES, jobs=4)
    for jobs in (3, 2, 1):
        plan = plan_of(TITLES, jobs=4, memory_budget=free.cost.training(jobs))
        assert (plan.jobs, plan.config) == (jobs, free.config)
        assert plan_of(TITLES, jobs=4, memory_budget=free.cost.training(jobs + 1) - 1).jobs == jobs


def test_then_it_takes_fewer_feature_slots_then_fewer_buckets() -> None:
    free = plan_of(TITLES)
    budget, seen = free.training_bytes, [free]
    while True:
        try:
            seen.append(plan_of(TITLES, memory_budget=budget - 1))
        except MemoryBudgetError:
            break
        assert seen[-1].training_bytes < budget
        budget = seen[-1].training_bytes
    bits, buckets = ([getattr(plan.config, name) for plan in seen] for name in ("feature_bits", "buckets"))
    assert bits == sorted(bits, reverse=True)
    assert buckets == sorted(buckets, reverse=True)
    assert all(now == free.config.buckets for now, bit in zip(buckets, bits, strict=True) if bit > min(bits))
    assert bits[-1] < bits[0]
    assert buckets[-1] < buckets[0]
    assert "memory budget" in seen[-1].reasons["feature_bits"]
    assert "memory budget" in seen[-1].reasons["buckets"]
    kept = {"feature_bits", "buckets"}
    assert {n: v for n, v in seen[-1].config.to_dict().items() if n not in kept} == {
        n: v for n, v in free.config.to_dict().items() if n not in kept
    }


@pytest.mark.parametrize("asked", [{}, {"buckets": 800}, {"feature_bits": 18}, {"buckets": 800, "feature_bits": 18}])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_budget_that_cannot_be_met_is_refused_with_the_nearest_that_can(asked: Any, in_memory: bool) -> None:
    chosen = Settings(**asked)
    with pytest.raises(MemoryBudgetError) as error:
        plan_of(TITLES, chosen, jobs=2, memory_budget=10**6, in_memory=in_memory)
    message = str(error.value)
    assert "memory budget is 1 MB" in message
    found = re.search(r"can do with is (\d+) MB: one repetition at a time, feature_bits=(\d+), buckets=(\d+)", message)
    assert found is not None
    least = plan_of(TITLES, chosen, jobs=2, memory_budget=int(found[1]) * 10**6, in_memory=in_memory)
    assert (least.jobs, least.config.feature_bits) == (1, int(found[2]))
    assert int(found[3]) <= least.config.buckets <= 2 * int(found[3])  # a MB, rounded up, has room for some more
    assert {name: getattr(least.config, name) for name in asked} == asked
    with pytest.raises(MemoryBudgetError):
        plan_of(TITLES, chosen, memory_budget=(int(found[1]) - 1) * 10**6, in_memory=in_memory)


@given(any_facts(), st.integers(10**6, 10**12), st.booleans())
@settings(deadline=None, max_examples=200)
def test_a_plan_fits_the_budget_or_is_refused(facts: Facts, budget: int, in_memory: bool) -> None:
    try:
        plan = plan_of(facts, jobs=3, memory_budget=budget, in_memory=in_memory)
    except MemoryBudgetError:
        return
    assert plan.training_bytes <= budget


# ---- what is printed


def test_the_description_has_every_reason_and_every_cost() -> None:
    plan = plan_of(TITLES, Settings(epochs=3), jobs=2)
    lines = plan.describe().splitlines()
    for name, reason in plan.reasons.items():
        assert any(line.startswith(name) and line.endswith(reason) for line in lines), name
    text = "\n".join(lines)
    assert "60,000 samples, 30,000 labels, 150,000 distinct features" in text
    assert "3.33 labels and 15.0 features a sample" in text
    assert re.search(r"training +[\d.]+ [MG]B +of memory, 2 repetitions at a time", text)
    assert re.search(r"model +[\d.]+ [KMG]B +on disk, about; [\d.]+ [MG]B to serve", text)


def test_plain_data_is_json() -> None:
    plan = plan_of(TITLES, jobs=2)
    data = json.loads(json.dumps(plan.to_dict()))
    assert Config.from_dict(data["config"]) == plan.config
    assert data["training_bytes"] == plan.training_bytes
    assert data["facts"]["n_samples"] == 60_000
    assert data["reasons"] == plan.reasons


# ---- what is estimated, and what it then takes


CHANGES: dict[str, tuple[dict[str, Any], float, float]] = {  # what is changed, by how much memory and time grow
    "buckets": ({"buckets": 1000}, 2.0, 2.0),
    "slots": ({"feature_bits": 12}, 0.13, 1.0),
    "repetitions": ({"repetitions": 32}, 1.0, 2.0),
    "epochs": ({"epochs": 9}, 1.0, 3.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_cost_follows_the_settings(change: str) -> None:
    chosen: dict[str, Any] = {
        "buckets": 500, "hidden": 0, "feature_bits": 18, "epochs": 3, "repetitions": 16, "min_count": 1, "prune": 0.3,
    }  # fmt: skip
    changed, memory, time = CHANGES[change]
    one, two = (cost_of(plan_of(TITLES, Settings(**c)).config, TITLES) for c in (chosen, {**chosen, **changed}))
    assert two.repetition / one.repetition == pytest.approx(memory, rel=0.2)
    if change != "slots":  # a table that fits the caches is faster
        assert two.cpu_seconds / one.cpu_seconds == pytest.approx(time, rel=0.2)


CHILD = """
import json, sys
import numpy as np
from machxc.config import Settings, TextConfig
from machxc.facts import facts_of
from machxc.labels import LabelNames
from machxc.plan import make_plan
from machxc.run import train_run
from machxc.samples import Features, Labels, Samples
from machxc.training import train

jobs, chosen, folder = int(sys.argv[1]), Settings(**json.loads(sys.argv[2])), sys.argv[3]
random = np.random.default_rng(0)
n, vocabulary, k = 20_000, 200_000, 10_000
rows = [np.unique((random.random(20) ** 3 * vocabulary).astype(np.uint64)) for _ in range(n)]
tokens = np.concatenate(rows) * np.uint64(0x9E3779B1) % np.uint64(2**32)
indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
features = Features(indptr, tokens.astype(np.uint32), np.ones(len(tokens), np.float32), 2**32)
labels = np.sort((random.random((n, 2)) ** 2 * (k - 1)).astype(np.uint32), axis=1) + np.array([0, 1], np.uint32)
samples = Samples(features, Labels(np.arange(0, 2 * n + 1, 2), labels.ravel(), k))
if folder:
    with open(folder + "/data.txt", "w") as file:
        print(n, vocabulary, k, file=file)
        for i, row in enumerate(rows):
            print(*sorted(set(labels[i].tolist())), sep=",", end=" ", file=file)
            print(*(f"{token}:1" for token in row.tolist()), file=file)
    plans = []
    tell = lambda plan, reason: plans.append(plan)
    model = train_run(folder + "/data.txt", folder + "/model", chosen, jobs=jobs, on_plan=tell)
    plan = plans[0]
else:
    asked = {"text": TextConfig(), "jobs": jobs}
    plan = make_plan(facts_of(samples, text=True), chosen, in_memory=True, **asked)
    model = train(samples, LabelNames.ids(k), chosen, **asked)
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
stored = sum(array.nbytes for tensors in model.data.repetitions.values() for array in tensors.values())
print(json.dumps({"planned": plan.training_bytes, "peak": peak, "model": plan.model_bytes, "stored": stored}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory in /proc")
@pytest.mark.parametrize(
    ("jobs", "chosen", "from_file"),
    [
        (1, {"hidden": 0, "buckets": 1500, "repetitions": 2, "epochs": 1}, False),
        (2, {"hidden": 0, "buckets": 500, "repetitions": 2, "epochs": 1}, True),
        (1, {"learner": "counts"}, False),
        (1, {"learner": "counts", "buckets": 1000}, True),
        (3, {"learner": "counts", "left_out": 5000, "associations": 5000}, True),
        (1, {"hidden": 256, "buckets": 100, "negatives": 10, "repetitions": 4, "epochs": 1}, False),
        (1, {"hidden": 256, "buckets": 100, "negatives": 10, "repetitions": 6, "epochs": 1}, True),
    ],
    ids=[
        "linear",
        "linear-two-at-a-time-from-a-file",
        "counted",
        "counted-from-a-file",
        "counted-by-three-threads",
        "hidden",
        "hidden-from-a-file",
    ],
)
def test_training_takes_the_memory_that_was_planned(
    tmp_path: Path, jobs: int, chosen: dict[str, int], from_file: bool
) -> None:
    arguments = [sys.executable, "-c", CHILD, str(jobs), json.dumps(chosen), str(tmp_path) if from_file else ""]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["peak"] > (120e6 if "learner" in chosen else 250e6)  # counted weights are few: mostly the runtime
    assert found["planned"] / found["peak"] == pytest.approx(1, abs=0.25)
    assert found["model"] / found["stored"] == pytest.approx(1, abs=0.5)


def test_threads_that_repetitions_leave_work_on_counted_ones() -> None:
    plan = plan_of(RARE, jobs=5)
    assert (plan.config.learner, plan.config.repetitions, plan.jobs, plan.threads) == ("counts", 1, 1, 5)
    assert "1 repetitions at a time, 5 threads each" in plan.describe()
    assert plan.to_dict()["threads"] == 5
    assert plan.training_bytes == plan.cost.training(1) + 4 * plan.cost.thread
    fewer = plan_of(RARE, jobs=5, memory_budget=plan.training_bytes - 1)
    assert (fewer.config, fewer.jobs, fewer.threads) == (plan.config, 1, 1)
    assert plan_of(TITLES, jobs=64).threads == 1  # steps are taken by one


def test_without_a_budget_what_the_machine_has_bounds_the_jobs_only() -> None:
    plan = plan_of(TITLES, jobs=4)
    one = within_machine(plan, plan.cost.training(1))
    assert (one.jobs, one.config) == (1, plan.config)
    assert within_machine(plan, plan.training_bytes) == plan
    with pytest.raises(MemoryBudgetError, match=r"one repetition at a time, and this machine has .* memory budget"):
        within_machine(plan, plan.cost.training(1) - 1)


def test_several_layers_are_normalised_and_counted() -> None:
    plan = plan_of(TITLES, Settings(hidden=[512, 256, 128]))
    assert plan.config.layers == (512, 256, 128)
    assert (plan.config.normalisation, plan.reasons["normalisation"]) == ("layer", "several hidden layers")
    assert "hidden              512, 256, 128     as asked" in plan.describe()
    table, last = plan_of(TITLES, Settings(hidden=512)), plan_of(TITLES, Settings(hidden=128))
    assert table.config.normalisation == last.config.normalisation == "none"
    inner, buckets = 512 * 256 + 256 * 128, plan.config.buckets
    assert plan.cost.stored - table.cost.stored == inner - buckets * (512 - 128)
    assert plan.cost.repetition - table.cost.repetition == pytest.approx(5 * (inner - buckets * (512 - 128)))
    assert plan.serving_bytes - last.serving_bytes > 4 * plan.config.repetitions * inner
    assert plan.cpu_seconds > last.cpu_seconds


def test_a_list_of_one_layer_is_that_layer() -> None:
    assert Settings(hidden=[128]) == Settings(hidden=128)
    assert plan_of(TITLES, Settings(hidden=(128,))).config == plan_of(TITLES, Settings(hidden=128)).config


@pytest.mark.parametrize("given", [{"normalisation": "layer"}, {"hidden_dropout": 0.1}])
def test_what_is_of_hidden_units_needs_some(given: dict[str, Any]) -> None:
    assert plan_of(TITLES, Settings(**given)).config.hidden == 128
    with pytest.raises(SettingError, match=f"'{next(iter(given))}' needs a hidden layer.*Set 'hidden'"):
        plan_of(TITLES, Settings(hidden=0, **given))


@pytest.mark.parametrize("hidden", [[], [0], [8, 0], [8, -1], [65537], [8, 4.0], [8, True], [[8], 4], [1] * 17, "8,4"])
def test_layers_out_of_bounds(hidden: Any) -> None:
    with pytest.raises(SettingError, match=r"'hidden' parameter of Settings must be .*a list of 1 to 16 ints in \[1, "):
        Settings(hidden=hidden)


def test_layers_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('hidden = [512, 256]\nnormalisation = "none"\n')
    given = Settings.from_toml(tmp_path / "settings.toml")
    assert given == Settings(hidden=[512, 256], normalisation="none")
    (tmp_path / "again.toml").write_text(given.to_toml())
    assert Settings.from_toml(tmp_path / "again.toml") == given


def test_this_machine_has_memory() -> None:
    assert physical_memory() > 100 << 20
