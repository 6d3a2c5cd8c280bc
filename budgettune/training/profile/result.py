"""What a profile found, as values and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from budgettune.spec.tables import Scalar
from budgettune.training.profile.cliffs import CliffVerdict
from budgettune.training.profile.kernels import Kernel
from budgettune.training.profile.probe import ProbeResult

NOTABLE_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class ProfileRow:
    """One configuration of the search space, and how it stands."""

    label: str
    params: Mapping[str, Scalar]
    result: ProbeResult
    verdict: CliffVerdict

    def flat(self) -> dict[str, Any]:
        return {
            "label": self.label,
            **self.params,
            "widths": spelled(self.result.widths),
            "blocks": self.result.blocks,
            "batch_size": self.result.batch_size,
            "precision": self.result.precision,
            "multiply_adds": self.result.multiply_adds,
            "steps": self.result.steps,
            "step_ms_median": self.result.ms_median,
            "step_ms_mad": self.result.ms_mad,
            "gflops_per_second": self.result.flops_per_second / 1e9,
            **asdict(self.verdict),
        }


@dataclass(frozen=True, kw_only=True)
class KernelPair:
    """A kernel of an alarmed configuration beside the same of its neighbour; None where one does not run it."""

    name: str
    kind: str
    own: Kernel | None
    neighbour: Kernel | None
    extra_ms: float  # per step, beyond what the neighbour's time is at the configuration's arithmetic


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change that was tried on an alarmed configuration, and what a step is with it."""

    change: str  # overrides to set, or the switch to flip
    widths: tuple[int, ...]  # realised
    step_ms: float
    speedup: float
    speedup_per_flop: float  # at equal arithmetic: widths that are rounded up do more of it


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A network that is far slower than its arithmetic explains, looked at where it is worst."""

    label: str  # of its worst configuration
    also: tuple[str, ...]  # labels of the same network at other batches that are alarmed too
    verdict: CliffVerdict
    neighbour: str | None  # label of the nearest configuration in arithmetic that is on no cliff
    explanation: str
    kernels: tuple[KernelPair, ...]  # first those that cost most beyond what the neighbour's cost
    remedies: tuple[Remedy, ...]  # fastest first; empty where none was tried


@dataclass(frozen=True, kw_only=True)
class ProfileReport:
    """What a profile found on a device: its configurations, and an alarm for each network off a cliff."""

    device: str
    threads: int
    threshold: float  # time over prediction from which a configuration is alarmed
    rows: tuple[ProfileRow, ...]
    alarms: tuple[Alarm, ...]
    skipped: tuple[str, ...] = ()  # which configurations could not run, and why
    status: str = "unverified"  # or clean or disturbed: whether the box was quiet meanwhile

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"rows": [row.flat() for row in self.rows]}


def remedy(change: str, before: ProbeResult, after: ProbeResult) -> Remedy:
    ms_before, ms_after = (result.ms_median / result.batch_size for result in (before, after))
    return Remedy(
        change=change,
        widths=after.widths,
        step_ms=after.ms_median,
        speedup=ms_before / ms_after,
        speedup_per_flop=after.flops_per_second / before.flops_per_second,
    )


def pair_kernels(own: Sequence[Kernel], neighbour: Sequence[Kernel], flop_ratio: float) -> tuple[KernelPair, ...]:
    """Return kernels side by side, those with the most extra time first; flop_ratio is own arithmetic over theirs."""
    ours, theirs = ({kernel.name: kernel for kernel in kernels} for kernels in (own, neighbour))
    pairs = [
        KernelPair(
            name=name,
            kind=(ours.get(name) or theirs[name]).kind,
            own=ours.get(name),
            neighbour=theirs.get(name),
            extra_ms=_ms(ours.get(name)) - flop_ratio * _ms(theirs.get(name)),
        )
        for name in dict.fromkeys([*ours, *theirs])
    ]
    return tuple(sorted(pairs, key=lambda pair: -pair.extra_ms))


def explain(own: ProbeResult, neighbour: ProbeResult | None, pairs: Sequence[KernelPair], lanes: int | None) -> str:
    """Return why a configuration is slow, as far as the kernels of it and a healthy neighbour tell.

    Lanes are the 32-bit numbers in a vector of the CPU; None on other devices.
    """
    sentences = [_slow_kinds(pairs) or _dearest(pairs)]
    if lanes and own.widths and vector_fill(own.widths, lanes) < 0.95:
        sentence = f"Its channels {spelled(own.widths)} fill {_fills(own.widths, lanes)} of vectors of {lanes} numbers"
        if neighbour is not None:
            sentence += f", the neighbour's {spelled(neighbour.widths)} {_fills(neighbour.widths, lanes)}"
        sentences.append(f"{sentence}: the rest of each vector is computed and thrown away.")
    return " ".join(filter(None, sentences))


def vector_fill(widths: Sequence[int], lanes: int) -> float:
    """Return the mean over stages of the part of the vectors that channels fill; stages cost about the same."""
    return sum(width / _whole_vectors(width, lanes) for width in widths) / len(widths)


def spelled(widths: Sequence[int]) -> str:
    """Return channel counts as 16/32/64."""
    return "/".join(map(str, widths))


def _whole_vectors(width: int, lanes: int) -> int:
    return -(-width // lanes) * lanes


def _fills(widths: Sequence[int], lanes: int) -> str:
    return "/".join(f"{width / _whole_vectors(width, lanes):.0%}" for width in widths)


def _ms(kernel: Kernel | None) -> float:
    return 0.0 if kernel is None else kernel.ms


def _slow_kinds(pairs: Sequence[KernelPair]) -> str:
    """Name kernels of a slow kind that the neighbour does with less of."""
    whole_ms = sum(_ms(pair.own) for pair in pairs)
    slow = [pair for pair in pairs if pair.kind and pair.own and pair.extra_ms > NOTABLE_SHARE * whole_ms]
    named = [f"{pair.name} ({pair.kind}, {pair.own.share:.0%} of its time)" for pair in slow[:3] if pair.own]
    return f"It runs kernels of a slow kind: {', '.join(named)}." if named else ""


def _dearest(pairs: Sequence[KernelPair]) -> str:
    """Say where the extra time goes when all kernels are good ones."""
    dearer = [pair for pair in pairs if pair.own and pair.neighbour and pair.extra_ms > 0]
    if not dearer:
        return ""
    named = [f"{pair.name} ({pair.extra_ms:.1f} ms)" for pair in dearer[:3]]
    return f"No FFT, reference or fallback kernel; the same kernels take longer per FLOP, above all {', '.join(named)}."
