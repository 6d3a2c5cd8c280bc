"""Which configurations count as fallen off a cliff, and what the profile program says of them."""

import io
import json
from dataclasses import replace

import pytest

from budgettune.cli.output import Screen
from budgettune.cli.profile import render_profile
from budgettune.errors import OutOfMemory, UsageError
from budgettune.spec.study_spec import load_spec
from budgettune.training.profile import profiler
from budgettune.training.profile.cliffs import growth, judge, nearest_healthy
from budgettune.training.profile.kernels import Kernel
from budgettune.training.profile.probe import Probe, ProbeResult
from budgettune.training.profile.profiler import profile
from budgettune.training.profile.result import explain, pair_kernels, remedy, vector_fill
from budgettune.training.profile.space import aligned_twin, configurations

WIDTHS = {1.0: (16, 32, 64), 1.1: (17, 35, 70), 1.2: (19, 38, 76), 1.3: (20, 41, 83), 1.4: (22, 44, 89)}
MILLIONS = {1.0: 31.0, 1.1: 36.4, 1.2: 43.5, 1.3: 50.0, 1.4: 79.0}
TWINS = {1.1: ((16, 32, 72), 33.5), 1.2: ((24, 40, 80), 55.1), 1.3: ((24, 40, 80), 55.1), 1.4: ((24, 48, 88), 88.3)}


def result(ms, millions, *, widths=(16, 32, 64), batch=200, precision="fp32"):
    return ProbeResult(
        batch_size=batch,
        precision=precision,
        widths=widths,
        blocks=3,
        multiply_adds=round(millions * 1e6),
        steps=3,
        ms_median=ms,
        ms_mad=0.01 * ms,
        ms_mean=ms,
        ms_error=0.0,
    )


def paper_space(slow, *, ms_per_million=4.0, twins=True, batches=(200,)):
    """Return results of the paper's scales in which some cost more per FLOP, and their twins."""
    results, twin_of = {}, {}
    for batch in batches:
        for scale, widths in WIDTHS.items():
            ms = ms_per_million * MILLIONS[scale] * slow.get(scale, 1.0) * batch / 200
            results[scale, batch] = result(ms, MILLIONS[scale], widths=widths, batch=batch)
            if twins and scale in TWINS:
                aligned, millions = TWINS[scale]
                twin_of[scale, batch] = (aligned, batch)
                results[aligned, batch] = result(
                    ms_per_million * millions * batch / 200, millions, widths=aligned, batch=batch
                )
    return results, twin_of


def cliffs(results, twins=None, **kwargs):
    return {key for key, verdict in judge(results, twins or {}, **kwargs).items() if verdict.is_cliff}


def test_one_slow_scale_is_found_by_its_neighbours_alone():
    results, _ = paper_space({1.1: 1.62}, twins=False)
    assert cliffs(results) == {(1.1, 200)}


def test_nothing_is_flagged_where_time_follows_arithmetic():
    assert cliffs(*paper_space({})) == set()


def test_all_slow_scales_are_found_where_most_of_the_space_is_slow():
    results, twins = paper_space({1.1: 3.0, 1.2: 2.5, 1.3: 8.0, 1.4: 16.0})
    assert cliffs(results, twins) == {(scale, 200) for scale in (1.1, 1.2, 1.3, 1.4)}
    assert judge(results, twins)[1.4, 200].witness == "aligned twin"


def test_a_scale_that_is_only_a_little_slower_is_not_flagged():
    assert cliffs(*paper_space({1.1: 1.4, 1.2: 1.17, 1.3: 1.12, 1.4: 1.11})) == {(1.1, 200)}


def test_a_slow_aligned_network_is_found_by_its_neighbours():
    results, twins = paper_space({})
    results["slow"] = result(2 * 4.0 * 60, 60, widths=(24, 48, 80))
    verdict = judge(results, twins)["slow"]
    assert verdict.is_cliff
    assert verdict.excess == pytest.approx(2.0, rel=0.05)


def test_a_batch_that_is_slow_for_one_network_is_found_by_its_other_batches():
    results = {batch: result(0.62 * batch, 31, batch=batch) for batch in (1400, 1600, 1800, 2000)}
    results[1800] = result(1.5 * 0.62 * 1800, 31, batch=1800)
    verdicts = judge(results, {})
    assert [batch for batch, verdict in verdicts.items() if verdict.is_cliff] == [1800]
    assert verdicts[1800].witness == "other batches"


def test_a_network_that_is_slow_at_every_batch_is_found_at_every_batch():
    results, twins = paper_space({1.1: 1.6}, batches=(1400, 1600, 1800, 2000))
    assert cliffs(results, twins) == {(1.1, batch) for batch in (1400, 1600, 1800, 2000)}


def test_small_networks_are_allowed_their_fixed_costs():
    # 5 ms whatever is computed: per FLOP the smallest costs 15 times as much as the largest.
    results = {millions: result(5 + 0.1 * millions, millions) for millions in (1, 4, 16, 64, 128)}
    assert cliffs(results) == set()
    batches = {batch: result(5 + 0.02 * batch, 10, batch=batch) for batch in (16, 64, 256, 1024)}
    assert cliffs(batches) == set()


def test_precisions_are_not_held_against_each_other():
    results = {1: result(100, 30), 2: result(140, 42), 3: result(50, 35, precision="bf16")}
    assert cliffs(results) == set()


def test_a_single_configuration_has_no_witness():
    verdict = judge({"only": result(100, 30)}, {})["only"]
    assert (verdict.predicted_ms, verdict.excess, verdict.witness, verdict.is_cliff) == (None, None, "", False)


def test_the_threshold_can_be_chosen():
    results, twins = paper_space({1.2: 1.2})
    assert cliffs(results, twins) == set()
    assert cliffs(results, twins, threshold=1.1) == {(1.2, 200)}


def test_growth_is_a_robust_exponent():
    assert growth([result(millions**0.5, millions) for millions in (10, 20, 40, 80)]) == pytest.approx(0.5)
    assert growth([result(3 * millions, millions) for millions in (10, 20, 40)] + [result(900, 80)]) == 1.0
    assert growth([result(5, 10)]) == 1.0


def test_the_nearest_healthy_configuration_is_near_in_arithmetic_and_healthy():
    results, twins = paper_space({1.1: 2.0, 1.2: 2.0})
    verdicts = judge(results, twins)
    assert nearest_healthy((1.1, 200), results, verdicts) == ((16, 32, 72), 200)
    assert nearest_healthy((1.2, 200), results, verdicts) == (1.3, 200)


def paper(*overrides):
    return load_spec("paper").with_overrides(["data.name=digits", "search.batch_size=[50]", *overrides])


def test_every_distinct_network_and_batch_is_probed_once():
    spec = load_spec("paper")
    assert len(configurations(spec)) == 5 * 4  # prune rates take the same steps
    assert len(configurations(spec.with_overrides(["model.width_multiple=8"]))) == 4 * 4  # 1.2 and 1.3 are one network
    assert configurations(spec.with_overrides(["scale=1.1", "batch_size=200"])) == [{}]


def test_a_range_is_probed_at_its_ends_and_between():
    spec = paper(
        "sampler.name=random", "search.scale={low=1.0, high=2.0}", "search.batch_size={low=16, high=256, log=true}"
    )
    points = configurations(spec)
    assert {point["scale"] for point in points} == {1.0, 1.25, 1.5, 1.75, 2.0}
    assert {point["batch_size"] for point in points} == {16, 32, 64, 128, 256}


def test_axes_that_depend_on_others_are_probed_where_they_are_active():
    spec = paper("pruning.strategy=full", 'search.train.optimizer=["sgd", "adam"]', "search.scale=[1.0]")
    spec = spec.with_overrides(['search.batch_size={values=[50, 100], when={"train.optimizer"="sgd"}}'])
    assert configurations(spec) == [
        {"scale": 1.0, "batch_size": 50},
        {"scale": 1.0, "batch_size": 100},
        {"scale": 1.0},
    ]


def test_only_unaligned_widths_have_a_twin():
    spec = paper()
    assert aligned_twin(spec.resolve({"scale": 1.0})) is None
    assert aligned_twin(spec.resolve({"scale": 1.1})).model.realised_widths == (16, 32, 72)
    assert spec.resolve({"scale": 1.1, "batch_size": 50}).step_label() == "17/35/70 × 3, batch 50, fp32"


class SlowWhenNarrow:
    """Stands for a probe on a device where channels that are not multiples of 8 take three times as long in fp32.

    In the other memory order everything takes half as long.
    """

    def __init__(self, config, data, box, *, cudnn_benchmark, trust):
        if config.train.batch_size > 1_000:
            raise OutOfMemory("no memory left: a smaller batch_size would fit")
        self.config = config
        self.calls = 0

    def measure(self, steps):
        self.calls += 1
        model, train = self.config.model, self.config.train
        millions = sum(width**2 for width in model.realised_widths) * model.realised_blocks / 1e3
        slow = 3 if self.odd and train.precision == "fp32" else 1
        slow /= 2 if train.memory_format == "contiguous" else 1
        noise = 1 + (self.calls % 3) / 2  # the quietest round counts
        return ProbeResult(
            batch_size=train.batch_size,
            precision=train.precision,
            widths=model.realised_widths,
            blocks=model.realised_blocks,
            multiply_adds=round(millions * 1e6),
            steps=steps,
            ms_median=millions * train.batch_size * slow * noise,
            ms_mad=0.0,
            ms_mean=millions * train.batch_size * slow * noise,
            ms_error=0.0,
        )

    @property
    def odd(self):
        return any(width % 8 for width in self.config.model.realised_widths)

    def kernels(self):
        name = "volta_gcgemm_32x32_tn" if self.odd else "sgemm"
        return (Kernel(name=name, kind="fft" if self.odd else "", launches=9, ms=5.0, share=1.0),)


def stand_in(*overrides, **kwargs):
    return profile(paper(*overrides), device="cpu", threads=1, make_probe=SlowWhenNarrow, **kwargs)


def test_each_network_off_the_cliff_is_explained_and_its_remedies_are_timed():
    said = []
    report = stand_in("search.batch_size=[50, 100]", report_progress=said.append)
    assert len(report.rows) == 10
    assert {row.params["scale"] for row in report.rows if row.verdict.is_cliff} == {1.1, 1.2, 1.3, 1.4}
    assert [len(alarm.also) for alarm in report.alarms] == [1, 1, 1, 1]
    alarm = report.alarms[0]
    assert alarm.neighbour.startswith("16/32/")
    assert "volta_gcgemm_32x32_tn (fft, 100% of its time)" in alarm.explanation
    speedups = {tried.change: tried.speedup_per_flop for tried in alarm.remedies}
    assert speedups["model.width_multiple=8"] == pytest.approx(3.0)
    assert speedups["train.memory_format=contiguous"] == pytest.approx(2.0)
    assert any("round 3 of 3" in line for line in said)


class DisturbedAtFirst(SlowWhenNarrow):
    """The same where all channels are good, and something else ran during the first rounds of one network."""

    odd = False

    def measure(self, steps):
        result = super().measure(steps)
        hit = result.widths[0] == 17 and self.calls <= 3
        return replace(result, ms_median=result.ms_median * (4 if hit else 1))


def test_a_disturbance_is_not_taken_for_a_cliff():
    report = profile(paper(), device="cpu", threads=1, make_probe=DisturbedAtFirst)
    assert report.alarms == ()
    assert report.status in ("clean", "disturbed", "unverified")


def test_remedies_can_be_left_out():
    assert all(not alarm.remedies for alarm in stand_in(remedies=False).alarms)


def test_aligned_widths_raise_no_alarm():
    report = stand_in("model.width_multiple=8")
    assert len(report.rows) == 4
    assert report.alarms == ()


def test_what_does_not_fit_is_skipped_and_said():
    report = stand_in("search.batch_size=[50, 1400]")
    assert {row.result.batch_size for row in report.rows} == {50}
    assert report.skipped[0].startswith("16/32/64 × 3, batch 1400, fp32: no memory left")


def test_a_report_is_plain_json_and_a_readable_table():
    report = stand_in("search.batch_size=[50, 100]")
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["rows"][0]["widths"] == "16/32/64"
    assert document["alarms"][0]["remedies"][0]["speedup"] > 1
    text = io.StringIO()
    render_profile(report, Screen(file=text, width=200))
    assert "cliff: 17/35/70 × 3, batch" in text.getvalue()
    assert "model.width_multiple=8" in text.getvalue()
    narrow = io.StringIO()
    render_profile(report, Screen(file=narrow, width=40, force_terminal=True, color_system=None))
    for row in report.rows:
        assert f"GFLOP/s {row.result.flops_per_second / 1e9:.1f}" in narrow.getvalue()
    calm = io.StringIO()
    render_profile(stand_in("model.width_multiple=8"), Screen(file=calm, width=200))
    assert "No kernel cliff" in calm.getvalue()


def test_rounds_and_steps_must_be_at_least_one():
    with pytest.raises(UsageError, match="rounds 0"):
        stand_in(rounds=0)


def test_steps_that_several_processes_train_are_not_profiled():
    with pytest.raises(UsageError, match=r"steps of one process: add --set train\.processes=1"):
        stand_in("train.processes=2")


def test_a_model_of_a_library_is_profiled_in_the_precision_that_it_trains_in(monkeypatch):
    asked = []
    monkeypatch.setattr(profiler, "pick_precision", lambda precision, device, widths: asked.append(widths) or "fp32")
    overrides = ["search={}", "train.precision=auto", "model.name=torchvision:resnet18"]
    profile(load_spec("digits").with_overrides(overrides), device="cpu", threads=1, make_probe=SlowWhenNarrow)
    assert asked == [[64, 128, 256, 512]]


def test_real_probes_run_end_to_end():
    report = profile(
        paper("search.scale=[0.5, 0.6]", "model.blocks=1"),
        device="cpu", threads=1, rounds=1, steps=1, threshold=0.01, make_probe=Probe,
    )  # fmt: skip
    assert [row.params["scale"] for row in report.rows] == [0.5, 0.6]
    assert all(row.result.flops_per_second > 0 for row in report.rows)
    assert report.alarms and report.alarms[0].kernels and report.alarms[0].remedies
    render_profile(report, Screen(file=io.StringIO(), width=120))


def kernel(name, ms, kind="", share=0.5):
    return Kernel(name=name, kind=kind, launches=3, ms=ms, share=share)


def test_kernels_are_paired_by_name_and_scaled_to_the_same_arithmetic():
    pairs = pair_kernels([kernel("a", 30), kernel("b", 12)], [kernel("b", 10), kernel("c", 5)], flop_ratio=1.2)
    assert [(pair.name, round(pair.extra_ms, 6)) for pair in pairs] == [("a", 30), ("b", 0), ("c", -6)]
    assert pairs[0].neighbour is None and pairs[2].own is None


def test_half_empty_vectors_are_named_where_the_kernels_are_good_ones():
    slow, healthy = result(241, 36.4, widths=(17, 35, 70)), result(154, 33.5, widths=(16, 32, 72))
    text = explain(slow, healthy, pair_kernels([kernel("jit", 60)], [kernel("jit", 35)], 1.09), lanes=16)
    assert "the same kernels take longer per FLOP, above all jit" in text
    assert "17/35/70 fill 53%/73%/88% of vectors of 16 numbers" in text
    assert vector_fill((16, 32, 64), 16) == 1


def test_a_remedy_is_judged_per_image_and_per_flop():
    tried = remedy("x", result(100, 30, batch=100), result(50, 45, batch=100))
    assert (tried.speedup, tried.speedup_per_flop) == (2.0, pytest.approx(3.0))
