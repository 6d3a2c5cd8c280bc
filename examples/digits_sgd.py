"""A linear model by scikit-learn, on its handwritten digits. No torch: docs/your-training.md goes through it."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split


def train(trial):
    with trial.aside("load"):  # set-up is off the clock; this names a part of it
        images, labels = load_digits(return_X_y=True)
        x, held_out_x, y, held_out_y = train_test_split(images / 16, labels, test_size=0.2, random_state=0)
    model = SGDClassifier(loss=trial.params["loss"], alpha=trial.params["alpha"], random_state=trial.seed)
    rng, classes, batch_size = np.random.default_rng(trial.seed), np.unique(y), trial.params["batch_size"]
    for _ in trial.epochs():  # until the epochs or the budget are used up
        with trial.clock():  # only this counts
            order = rng.permutation(len(y))
            for first in range(0, len(y), batch_size):
                batch = order[first : first + batch_size]
                model.partial_fit(x[batch], y[batch], classes=classes)
                if not trial.step(len(batch)):  # False when the time is up
                    break
        trial.report(accuracy=model.score(held_out_x, held_out_y))  # off the clock again
    trial.describe(parameters=model.coef_.size)
