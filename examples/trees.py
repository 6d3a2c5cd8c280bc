"""Gradient boosting by scikit-learn, a tree for each class in every epoch; judged by the log loss. No torch.

budgettune study create examples/trees.toml
PYTHONPATH=examples budgettune worker --allow-import trees
"""

from sklearn.datasets import load_digits
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split


def train(trial):
    with trial.aside("load"):
        images, labels = load_digits(return_X_y=True)
        x, held_out_x, y, held_out_y = train_test_split(images, labels, test_size=0.3, random_state=0)
    model = GradientBoostingClassifier(warm_start=True, random_state=trial.seed, **trial.params)
    for epoch in trial.epochs():
        with trial.clock():
            model.set_params(n_estimators=epoch + 1).fit(x, y)
            trial.step(len(y))
        if epoch % 5 == 4 or trial.is_last_epoch:
            trial.report(log_loss=log_loss(held_out_y, model.predict_proba(held_out_x)))
