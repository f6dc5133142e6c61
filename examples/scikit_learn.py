"""MACHClassifier among its peers: in a Pipeline, a grid search and a cross-validation, on texts made up on the spot."""

from __future__ import annotations

import random

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline

from machxc import MACHClassifier, precision_at_k_scorer

TOPICS = {
    "baking": "flour yeast oven dough crust sugar butter rise",
    "cycling": "wheel brake saddle chain gear helmet climb pedal",
    "gardening": "soil seed water compost prune rose spade bloom",
    "sailing": "wind mast harbour anchor wave knot tide deck",
    "chess": "queen rook check pawn opening endgame clock board",
    "music": "violin chord tempo melody rehearsal score concert tune",
}


def made_up(n: int) -> tuple[list[str], list[list[str]]]:
    """Texts of one topic or two, and their topics: half the words are of these topics, half are of any."""
    draw = random.Random(0)
    topics = [draw.sample(sorted(TOPICS), draw.choice((1, 1, 2))) for _ in range(n)]
    words = [" ".join(TOPICS[topic] for topic in each).split() for each in topics]
    anywhere = " ".join(TOPICS.values()).split()
    return [" ".join(draw.choices(own, k=4) + draw.choices(anywhere, k=4)) for own in words], topics


def main() -> None:
    """Score on folds, search settings, score what was found on held-out texts, and ask."""
    texts, topics = made_up(1200)
    train_texts, test_texts, train_topics, test_topics = train_test_split(texts, topics, random_state=0)
    folds, scorer = KFold(3), precision_at_k_scorer(1)

    scores = cross_val_score(MACHClassifier(), train_texts, train_topics, cv=folds, scoring=scorer)
    print(f"texts as they are, default settings: P@1 {scores.mean():.3f}")

    pipeline = make_pipeline(TfidfVectorizer(), MACHClassifier())
    grid = {"machclassifier__buckets": [2, 4], "machclassifier__repetitions": [1, 4, 16]}
    search = GridSearchCV(pipeline, grid, cv=folds, scoring=scorer).fit(train_texts, train_topics)
    print("six labels in a few buckets, behind TfidfVectorizer:")
    for settings, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
        print(
            "  {machclassifier__buckets} buckets, {machclassifier__repetitions:2} repetitions:".format(**settings),
            end="",
        )
        print(f" P@1 {score:.3f}")
    print(f"the best of them on texts held out: P@1 {search.score(test_texts, test_topics):.3f}")

    question = "a rose beside the harbour"
    names, values = search.best_estimator_[-1].top_k(search.best_estimator_[:-1].transform([question]), k=3)
    print(f"{question!r}:", ", ".join(f"{name} {value:.2f}" for name, value in zip(names[0], values[0], strict=True)))


if __name__ == "__main__":
    main()
