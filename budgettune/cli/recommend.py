"""`budgettune recommend`: what to train within a budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from budgettune import api
from budgettune.cli import options
from budgettune.cli.output import (
    Format,
    expected_text,
    print_fields,
    print_json,
    print_rows,
    say,
    say_figures,
    settings_text,
)
from budgettune.text import format_duration

if TYPE_CHECKING:
    from budgettune.predict.predictor import Prediction
    from budgettune.predict.recommend import Basis, Recommendation

app = typer.Typer()


@app.command(
    rich_help_panel=options.ANSWERS,
    epilog=options.examples("recommend --budget 60s", "recommend mine --budget 10m --confidence 0.95 --probe 30s"),
)
def recommend(
    study: options.Study = None,
    budget: Annotated[float, options.lasting("--budget", metavar="60s", help="Training time allowed.")] = ...,  # type: ignore[assignment]
    confidence: Annotated[
        float, typer.Option("--confidence", min=0.5, max=0.999, help="Least probability of ending in time.")
    ] = 0.9,
    device_name: Annotated[
        str | None,
        typer.Option("--device-name", metavar="NAME", help="Kind of machine to train on; the study's own if left out."),
    ] = None,
    probe: Annotated[
        float | None,
        options.lasting("--probe", metavar="30s", help="First time steps that never ran, here, for that long."),
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    allow_import: options.AllowImport = None,
    allow_command: options.AllowCommand = None,
    form: options.FormatOption = Format.table,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Say what to train within a budget, also what never ran, with predicted time and accuracy."""
    from budgettune.spec.trust import allowed_commands, allowed_packages

    answer = api.recommend(
        study,
        budget,
        confidence=confidence,
        device_name=device_name,
        probe=probe,
        device=device,
        threads=threads,
        allow_import=allowed_packages(allow_import),
        allow_command=allowed_commands(allow_command),
        say=say,
        storage=storage,
    )
    if form is Format.json:
        print_json(answer.to_json())
    elif form is Format.csv:
        values = answer.choice.to_json(answer.objective)
        del values["params"]
        print_rows([{**answer.choice.params, **values}], form)
    else:
        print_answer(answer)


def print_answer(answer: Recommendation) -> None:
    where = f" on {answer.device_name}" if answer.device_name else ""
    say_figures(
        f"{answer.study}: {format_duration(answer.budget_seconds)}{where}, "
        f"with a probability of at least {100 * answer.confidence:g}% to end in time\n\n"
    )
    print_fields(_fields(answer))


def _fields(answer: Recommendation) -> Iterator[tuple[str, str]]:
    yield "train", _spelled(answer.choice)
    chance = answer.choice.chance_in_time
    yield "  time", f"{_time(answer.choice)}, in time with {'over 99%' if chance > 0.99 else f'{chance:.0%}'}"
    yield f"  {answer.objective.label}", expected_text(answer.aim, answer.choice)
    yield "best that ran", _observed(answer)
    for text in answer.extrapolated:
        yield "extrapolated", text
    if answer.next_trial is None:
        least = _points(answer, answer.basis.least_gain)
        yield "to know more", f"no single trial is likely to change this answer by {least}"
    else:
        following = answer.next_trial
        yield (
            "to know more",
            f"run {_spelled(following.prediction)}: {_time(following.prediction)}; "
            f"worth {_points(answer, following.gain)} of the answer, as expected",
        )
    basis = answer.basis
    repeats = f"{basis.repeats} repeat{'s' if basis.repeats != 1 else ''}"
    probes = f", {format_duration(basis.probe_seconds)} of them probes" if basis.probe_seconds else ""
    yield (
        "from",
        f"{basis.trials} trials of {basis.configurations} configurations, {repeats}; "
        f"{basis.step_times} step times{probes}",
    )
    yield (
        "seeds",
        f"lie ±{_points(answer, basis.seed_deviation)} apart at this choice; no model could explain over "
        f"{basis.noise_ceiling:.0%} of what trials differ by",
    )
    yield "intervals", _calibration(basis)
    if answer.aim.images is not None:
        yield "images", answer.aim.images.sentence
    for note in answer.notes:
        yield "note", note


def _points(answer: Recommendation, difference: float) -> str:
    """Return a difference of two values for people."""
    return f"{100 * difference:.2f} points" if answer.objective.is_accuracy else f"{difference:.2g}"


def _calibration(basis: Basis) -> str:
    if not basis.calibrated_on:
        return "not calibrated: too few configurations to hold any out"
    return (
        f"calibrated on {basis.calibrated_on} held-out configurations: "
        f"×{basis.value_factor**0.5:.2f} as wide, times ×{basis.time_factor**0.5:.2f}"
    )


def _spelled(prediction: Prediction) -> str:
    epochs = f"{prediction.epochs} epoch{'s' if prediction.epochs != 1 else ''}"
    return f"{settings_text(prediction.params)} for {epochs}"


def _time(prediction: Prediction) -> str:
    low, high = format_duration(prediction.seconds_low), format_duration(prediction.seconds_high)
    return f"{format_duration(prediction.seconds)} ({low} to {high})"


def _observed(answer: Recommendation) -> str:
    trial = answer.observed
    if trial is None or trial.train_seconds is None or trial.value is None:
        return "nothing within the budget"
    on_test = "" if trial.on_test is None else f", {answer.objective.text(trial.on_test)} on test images"
    return (
        f"trial {trial.number} ({settings_text(trial.params)}, {trial.epochs} epochs): "
        f"{format_duration(trial.train_seconds)}, {answer.objective.text(trial.value)}{on_test}"
    )
