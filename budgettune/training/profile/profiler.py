"""Where the time of a search space goes: every network and batch probed, kernel cliffs named, remedies timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from budgettune.errors import OutOfMemory, UsageError
from budgettune.machine.fingerprint import default_threads
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import ALIGNMENT, AUTO, Scalar, is_code
from budgettune.spec.trust import Trust
from budgettune.training.data.load import ImageData
from budgettune.training.device import Device, has_fast_bf16, pick_device, pick_precision
from budgettune.training.group import using_threads
from budgettune.training.learner import build_model
from budgettune.training.profile.cliffs import THRESHOLD, CliffVerdict, judge, nearest_healthy
from budgettune.training.profile.probe import Probe, ProbeResult, fewest_steps, probe_images
from budgettune.training.profile.result import Alarm, ProfileReport, ProfileRow, Remedy, explain, pair_kernels, remedy
from budgettune.training.profile.space import aligned_twin, configurations

_LANES = {"AVX512": 16, "AVX2": 8}  # 32-bit numbers in a vector


def profile(
    spec: StudySpec,
    *,
    device: str = "auto",
    threads: int | None = None,
    rounds: int = 3,
    steps: int | None = None,
    remedies: bool = True,
    cudnn_benchmark: bool = True,
    threshold: float = THRESHOLD,
    trust: Trust = Trust(),
    report_progress: Callable[[str], None] = lambda line: None,
    make_probe: Callable[..., Probe] = Probe,
) -> ProfileReport:
    """Probe every distinct network and batch of a search space, and look closer at what falls off a cliff.

    Configurations, and the aligned twin of each unaligned one, take turns for several rounds, in an order that
    reverses each time; of each the quietest round counts, because a disturbance only ever adds time. Where one looks
    like a cliff, its batch is measured again before anything is said.

    Args:
        spec: of the study. Pruning and the length of training play no part; a range is probed at five points.
        device: auto, cpu, cuda or cuda:N.
        threads: of the CPU; None for `default_threads`.
        rounds: turns of each configuration.
        steps: timed in each turn; None for 3, on a GPU 24.
        remedies: time remedies for what is alarmed.
        cudnn_benchmark: False to probe as scripts do that leave it off; it is then tried as a remedy.
        threshold: time over prediction from which a configuration is alarmed.
        trust: which packages code named in the spec may come from.
        report_progress: told what happens, a line at a time.
        make_probe: builds a probe; a stand-in for tests.

    Raises:
        UsageError: where rounds or steps are below one, the device is not here, or several processes train a trial.
        SpecError: where a configuration cannot work.
        DataError: where images that are not built in cannot be read.
    """
    if (spec.train.processes or 1) > 1:
        raise UsageError("train.processes: a profile times the steps of one process: add --set train.processes=1")
    target = Device(pick_device(device))
    steps = fewest_steps(target, on_cpu=3) if steps is None else steps
    if min(rounds, steps) < 1:
        raise UsageError(f"rounds {rounds}, steps {steps}: give at least 1 of each")
    target.prepare()
    factory = _ProbeFactory(spec, target, cudnn_benchmark, trust, make_probe)
    with using_threads(threads or default_threads()):
        return _Profiler(factory, rounds, steps, threshold, report_progress).report(remedies)


@dataclass
class _ProbeFactory:
    """Builds probes of one spec on one device, with images shared between them."""

    spec: StudySpec
    device: Device
    cudnn_benchmark: bool
    trust: Trust
    make_probe: Callable[..., Probe]
    images: dict[str, ImageData] = field(default_factory=dict)

    def configs(self) -> dict[str, tuple[dict[str, Scalar], StudySpec]]:
        """Return params and resolved spec of each configuration, by label, with the precision pinned.

        A twin or a remedy then changes one thing at a time.
        """
        by_label: dict[str, tuple[dict[str, Scalar], StudySpec]] = {}
        for params in configurations(self.spec):
            config = self.spec.resolve(params)
            precision = pick_precision(config.train.precision, self.device.torch, self._widths(config))
            pinned = config.resolve({"train.precision": precision})
            by_label.setdefault(pinned.step_label(), (params, pinned))
        return by_label

    def _widths(self, config: StudySpec) -> list[int] | None:
        """Return what `auto` goes by, which a model from elsewhere tells once it is built."""
        if not is_code(config.model.name):
            return list(config.model.realised_widths)
        if config.train.precision != AUTO:
            return None
        with self.device.own_chance(0):
            model = build_model(config.resolve({"model.weights": None}), self._images(config), self.trust)
        told: dict[str, Any] = getattr(model, "architecture", {})
        return told.get("widths")

    def _images(self, config: StudySpec) -> ImageData:
        key, count = config.data.model_dump_json(), config.train.batch_size
        if key not in self.images or len(self.images[key].train) < count:
            self.images[key] = probe_images(config.data, count, self.device.torch, self.trust)
        return self.images[key]

    def probe(self, config: StudySpec, cudnn_benchmark: bool | None = None) -> Probe:
        images, benchmark = self._images(config), self.cudnn_benchmark if cudnn_benchmark is None else cudnn_benchmark
        return self.make_probe(config, images, self.device, cudnn_benchmark=benchmark, trust=self.trust)

    def changes(self, config: StudySpec) -> dict[str, Callable[[], Probe]]:
        """Return what may help a configuration: the change, and how to build its probe."""
        other = "fp32" if config.train.precision == "bf16" else "bf16"
        in_other = {"train.precision": other} if other == "fp32" or has_fast_bf16(self.device.torch) else {}
        aligned = {"model.width_multiple": ALIGNMENT} if aligned_twin(config) is not None else {}
        order = "contiguous" if config.train.memory_format == "channels_last" else "channels_last"
        params: list[dict[str, Any]] = [aligned, in_other, {**aligned, **in_other} if aligned and in_other else {}]
        params.append({"train.memory_format": order})
        builders: dict[str, Callable[[], Probe]] = {
            " ".join(f"{key}={value}" for key, value in change.items()): partial(self.probe, config.resolve(change))
            for change in params
            if change
        }
        if self.device.is_cuda and not self.cudnn_benchmark:
            # torch keeps cuDNN's first choice for a shape whatever the switch says later: change the shape by one.
            smaller = config.resolve({"train.batch_size": max(1, config.train.batch_size - 1)})
            builders["cudnn.benchmark=True"] = partial(self.probe, smaller, cudnn_benchmark=True)
        return builders


@dataclass
class _Profiler:
    """Takes the factory's probes through the rounds, and the alarmed ones through the rest."""

    factory: _ProbeFactory
    rounds: int
    steps: int
    threshold: float
    say: Callable[[str], None]
    probes: dict[str, Probe] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def report(self, try_remedies: bool) -> ProfileReport:
        configs = self.factory.configs()
        machine = self.factory.device.machine()
        twins = self._build_all({label: config for label, (_, config) in configs.items()})
        with self.factory.device.witness() as witness:
            results = self._confirmed(self._measure(self.probes), twins)
        verdicts = judge(results, twins, self.threshold)
        rows = tuple(
            ProfileRow(label=label, params=params, result=results[label], verdict=verdicts[label])
            for label, (params, _) in configs.items()
            if label in results
        )
        return ProfileReport(
            device=machine.device_name,
            threads=torch.get_num_threads(),
            threshold=self.threshold,
            rows=rows,
            alarms=tuple(self._alarm(alike, results, verdicts, try_remedies) for alike in _by_network(rows)),
            skipped=tuple(self.skipped),
            status=witness.verdict.status,
        )

    def _build_all(self, configs: Mapping[str, StudySpec]) -> dict[str, str]:
        """Build the probes of configurations and of their twins; return each label's twin."""
        twins: dict[str, str] = {}
        for label, config in configs.items():
            self._build(label, partial(self.factory.probe, config), self.probes)
            twin = aligned_twin(config)
            if twin is not None and label in self.probes:
                twins[label] = twin.step_label()
                self._build(twins[label], partial(self.factory.probe, twin), self.probes)
        return twins

    def _build(self, label: str, build: Callable[[], Probe], probes: dict[str, Probe]) -> None:
        """Add a probe unless it is there; note it where the device has no room."""
        if label in probes:
            return
        self.say(f"warming up {label}")
        try:
            probes[label] = build()
        except OutOfMemory as error:
            self.skipped.append(f"{label}: {error}")

    def _measure(self, probes: Mapping[str, Probe]) -> dict[str, ProbeResult]:
        """Return the quietest of several rounds of each probe; rounds run forwards and backwards in turn."""
        best: dict[str, ProbeResult] = {}
        for number in range(self.rounds):
            order = list(probes) if number % 2 == 0 else list(probes)[::-1]
            for position, label in enumerate(order, start=1):
                self.say(f"round {number + 1} of {self.rounds}, {position} of {len(order)}: {label}")
                result = probes[label].measure(self.steps)
                best[label] = _quieter(best.get(label, result), result)
        return best

    def _confirmed(self, results: Mapping[str, ProbeResult], twins: Mapping[str, str]) -> dict[str, ProbeResult]:
        """Measure again the batches in which something looks like a cliff: a disturbance is none."""
        suspects = {label for label, verdict in judge(results, twins, self.threshold).items() if verdict.is_cliff}
        batches = {results[label].batch_size for label in suspects}
        again = {label: probe for label, probe in self.probes.items() if results[label].batch_size in batches}
        if again:
            self.say(f"measuring {len(again)} again, to be sure of {len(suspects)} that look like cliffs")
        return {**results, **{label: _quieter(results[label], new) for label, new in self._measure(again).items()}}

    def _alarm(
        self,
        alike: list[ProfileRow],
        results: Mapping[str, ProbeResult],
        verdicts: Mapping[str, CliffVerdict],
        try_remedies: bool,
    ) -> Alarm:
        """Look closely at the worst of one network's alarmed rows."""
        worst, *others = sorted(alike, key=lambda row: -(row.verdict.excess or 0.0))
        neighbour = nearest_healthy(worst.label, results, verdicts)
        self.say(f"naming the kernels of {worst.label}")
        beside = None if neighbour is None else results[neighbour]
        pairs = pair_kernels(
            self.probes[worst.label].kernels(),
            () if neighbour is None else self.probes[neighbour].kernels(),
            1.0 if beside is None else worst.result.flop_per_step / beside.flop_per_step,
        )
        lanes = None if self.factory.device.is_cuda else _LANES.get(torch.backends.cpu.get_cpu_capability())
        return Alarm(
            label=worst.label,
            also=tuple(row.label for row in others),
            verdict=worst.verdict,
            neighbour=neighbour,
            explanation=explain(worst.result, beside, pairs, lanes),
            kernels=pairs,
            remedies=self._remedies(worst.label) if try_remedies else (),
        )

    def _remedies(self, label: str) -> tuple[Remedy, ...]:
        """Time what may help, in turns with the configuration itself."""
        probes = {label: self.probes[label]}
        for change, build in self.factory.changes(self.probes[label].config).items():
            self._build(change, build, probes)
        results = self._measure(probes)
        before = results.pop(label)
        tried = [remedy(change, before, after) for change, after in results.items()]
        return tuple(sorted(tried, key=lambda one: -one.speedup))


def _quieter(one: ProbeResult, other: ProbeResult) -> ProbeResult:
    return min(one, other, key=lambda result: result.ms_median)


def _by_network(rows: tuple[ProfileRow, ...]) -> list[list[ProfileRow]]:
    """Return the alarmed rows, those of one network at several batches together."""
    groups: dict[tuple[Any, ...], list[ProfileRow]] = {}
    for row in rows:
        if row.verdict.is_cliff:
            network = (row.result.widths, row.result.blocks, row.result.multiply_adds, row.result.precision)
            groups.setdefault(network, []).append(row)
    return list(groups.values())
