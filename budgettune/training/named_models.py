"""Models of torchvision and timm by name, fitted to channels, classes and small images; weights from a file.

Nothing is ever downloaded, and a name is looked up among the image classifiers of its library alone.
"""

from __future__ import annotations

import copy
import difflib
import importlib.metadata
import inspect
import logging
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from budgettune.errors import SpecError, UsageError
from budgettune.files import user_path
from budgettune.spec.tables import ModelSpec, library_of, why_ours
from budgettune.spec.trust import contained
from budgettune.text import as_written, first_line, warn_once

logger = logging.getLogger(__name__)

SMALLEST_MAP = 4  # pixels on a side that shall be left when all layers have halved an image
MOST_UNDONE = 4  # factor by which a small image is halved less than the model was made for: the stem's two halvings
STEM_KERNEL = 3  # of a first convolution that does not halve, as in the ResNets for CIFAR (He et al. 2016)
LARGEST_STEM_STRIDE = 4  # a first convolution beyond it cuts patches, and its stride is the patch
TRIED_SIZES = (16, 28, 32, 48, 56, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 384, 448, 512)
_HALVING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_UNKNOWN_OPTION = re.compile(r"unexpected keyword argument '(\w+)'")
_FIXED_OPTION = re.compile(r"multiple values for keyword argument '(\w+)'")

State = Mapping[str, Tensor]


class _DoesNotFit(Exception):
    """A model that cannot take images of this size, or not with these options; the message has the library's reason."""


def build_named(
    spec: ModelSpec, *, channels: int, num_classes: int, image_size: int, weights: State | None = None
) -> nn.Module:
    """Return a library's model, initialised from the global random state, with what was fitted as `architecture`.

    `weights` will be filled in later: where a first convolution has the kernel that it has there, it keeps it.

    Raises:
        SpecError: where there is no such model or option, or it cannot take images of this size.
        UsageError: where this machine has not the library.
    """
    check_name(spec.name)

    def fitted(size: int, spec: ModelSpec = spec) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' advice to their callers
            return _fitted(spec, channels, num_classes, size, weights or {})

    try:
        return fitted(image_size)
    except _DoesNotFit as error:
        if spec.options and _works(lambda: fitted(image_size, spec.model_copy(update={"options": {}}))):
            told = ", ".join(f"{key} = {as_written(value)}" for key, value in spec.options.items())
            raise SpecError(f"model.options: {spec.name} cannot be built with {told} ({error})") from None
        sizes = sorted(TRIED_SIZES, key=lambda size: abs(size - image_size))
        fitting = next((size for size in sizes if _works(lambda size=size: fitted(size))), None)  # type: ignore[misc]
        advice = f"set data.image_size = {fitting}, or take another model" if fitting else "take another model"
        raise SpecError(
            f"data.image_size: {spec.name} cannot take images of {image_size} pixels ({error}): {advice}"
        ) from None


def _works(build: Callable[[], nn.Module]) -> bool:
    try:
        with torch.random.fork_rng(devices=[]):
            build()
    except (_DoesNotFit, SpecError):
        return False
    return True


def check_name(name: str) -> None:
    """Refuse the name of a model that its library does not have.

    Raises:
        SpecError: with the nearest names.
        UsageError: where this machine has not the library.
    """
    library, _, model = name.partition(":")
    names = _torchvision_names() if library == "torchvision" else _timm().list_models()
    if model not in names:
        near = difflib.get_close_matches(model, names, n=3)
        meant = f"did you mean {', '.join(near)}?" if near else f"it has {names[0]}, … {names[-1]}"
        raise SpecError(f"model.name: {library} has no image classifier {model!r}: {meant}")


def _torchvision_names() -> Sequence[str]:
    from torchvision import models

    return models.list_models(module=models)  # type: ignore[no-any-return]


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UsageError(
            f"model.name: timm cannot be imported on this machine ({first_line(error)}): pip install 'budgettune[timm]'"
        ) from None
    return timm


def _fitted(spec: ModelSpec, channels: int, num_classes: int, size: int, weights: State) -> nn.Module:
    library = library_of(spec.name)
    make = _make_torchvision if library == "torchvision" else _make_timm
    try:
        with contained():
            model: nn.Module = make(spec, channels, num_classes, size)
    except Exception as error:  # whatever the library says of options and sizes
        if isinstance(error, TypeError) and (found := _option_fault(spec, str(error), channels, num_classes, size)):
            raise SpecError(found) from None
        raise _DoesNotFit(first_line(error)) from error
    shape = (channels, size, size)
    told: dict[str, Any] = {"library": f"{library} {importlib.metadata.version(str(library))}"}
    if stem := _fit_small(model, shape, num_classes, weights):
        told["stem"] = stem
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    # `precision = "auto"` goes by them. In bf16 on a CPU depthwise networks took twice as long as in fp32, others less.
    if all(layer.groups == 1 for layer in convolutions):
        told["widths"] = sorted({layer.out_channels for layer in convolutions})
    model.architecture = told  # type: ignore[assignment]
    return model


def _make_torchvision(spec: ModelSpec, channels: int, num_classes: int, size: int) -> nn.Module:
    from torchvision import models

    name = spec.name.partition(":")[2]
    shape: dict[str, Any] = {}
    if name.startswith("vit_"):
        shape = {"image_size": size}
    elif name.startswith("maxvit_"):
        shape = {"input_size": (size, size)}
    elif name in ("googlenet", "inception_v3"):  # whose second outputs are for a loss of their own
        shape = {"aux_logits": False, "init_weights": True}
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **shape, **spec.options)
    _fit_channels(model, channels)
    return model


def _fit_channels(model: nn.Module, channels: int) -> None:
    name, first = next((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
    if first.in_channels == channels:
        return
    fit = copy.deepcopy(first)
    fit.in_channels = channels
    empty = torch.empty(first.out_channels, channels, *first.kernel_size)
    # As the family draws them: by the spread that its weights have now.
    fit.weight = nn.Parameter(nn.init.normal_(empty, std=float(first.weight.detach().std())))
    model.set_submodule(name, fit)


def _make_timm(spec: ModelSpec, channels: int, num_classes: int, size: int) -> nn.Module:
    name, create = spec.name.partition(":")[2], _timm().create_model
    common = {"pretrained": False, "num_classes": num_classes, "in_chans": channels, **spec.options}
    try:  # a transformer is built for a size
        return create(name, img_size=size, **common)  # type: ignore[no-any-return]
    except TypeError as error:
        if "'img_size'" not in str(error):
            raise
    return create(name, **common)  # type: ignore[no-any-return]


def _option_fault(spec: ModelSpec, message: str, channels: int, num_classes: int, size: int) -> str | None:
    """Return what is wrong with an option, where Python's refusal of a call names one of the spec's."""
    if (found := _FIXED_OPTION.search(message)) and found[1] in spec.options:
        return f"model.options.{found[1]}: is fixed by {spec.name}: take another model, or leave it out"
    if not (found := _UNKNOWN_OPTION.search(message)) or found[1] not in spec.options:
        return None
    unknown, plain = found[1], spec.model_copy(update={"options": {}})
    make = _make_torchvision if library_of(spec.name) == "torchvision" else _make_timm
    try:
        with torch.random.fork_rng(devices=[]):
            parameters = list(inspect.signature(type(make(plain, channels, num_classes, size))).parameters.values())
    except Exception:  # not for this size: a fault of its own
        parameters = []
    plain_values = (each.name for each in parameters if type(each.default) in (bool, int, float, str))
    known = [name for name in plain_values if why_ours(name) is None]
    takes = f"; it takes {', '.join(known)}" if known else ""
    return f"model.options.{unknown}: {spec.name} has no such option{takes}"


class _Trace:
    """One image sent through a model: the layers that make maps smaller, in order, and whether classes came out."""

    def __init__(self, model: nn.Module, shape: Sequence[int], num_classes: int) -> None:
        self.halvings: list[tuple[str, int, int]] = []  # name, pixels on a side that come in, stride
        self.failure: str | None = None
        handles = [
            layer.register_forward_pre_hook(self._noting(name))
            for name, layer in model.named_modules()
            if isinstance(layer, _HALVING)
        ]
        was_training = model.training
        try:
            with torch.no_grad():
                output = model.eval()(torch.zeros(1, *shape))
            if not (isinstance(output, Tensor) and output.shape == (1, num_classes)):
                self.failure = "it gives something else than a number for each class"
        except Exception as error:  # sizes that do not go together show anywhere
            self.failure = first_line(error)
        finally:
            model.train(was_training)
            for handle in handles:
                handle.remove()

    def _noting(self, name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def note(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            stride = layer.stride if isinstance(layer.stride, int) else layer.stride[0]
            if stride > 1:
                self.halvings.append((name, inputs[0].shape[-1], stride))

        return note

    @property
    def stages(self) -> dict[int, int]:
        """Strides by the pixels on a side that come in, largest map first: layers side by side halve the same map."""
        least: dict[int, int] = {}
        for _, pixels, stride in self.halvings:
            least[pixels] = min(stride, least.get(pixels, stride))
        return dict(sorted(least.items(), reverse=True))


def _fit_small(model: nn.Module, shape: tuple[int, int, int], num_classes: int, weights: State) -> list[str]:
    """Have the first layers of a model halve a small image less, where too little would be left; return what was done.

    What the model was made for is left alone where it does not work otherwise, as in a transformer.
    """
    size = shape[-1]
    trace = _Trace(model, shape, num_classes)
    stages, failure = trace.stages, trace.failure
    first_stride = next(iter(stages.values()), 1)
    if first_stride > LARGEST_STEM_STRIDE and (size % first_stride or size < 2 * first_stride):
        raise _DoesNotFit(f"it cuts them into patches of {first_stride} pixels, and needs four of them at least")
    wanted = MOST_UNDONE if failure else min(MOST_UNDONE, SMALLEST_MAP * math.prod(stages.values()) / size)
    undone, done, before = 1, [], {}
    for pixels, stride in stages.items():
        if undone >= wanted or stride > LARGEST_STEM_STRIDE:
            break
        rest = 2 if stride == MOST_UNDONE and wanted / undone <= 2 else 1
        for name in dict.fromkeys(name for name, *seen in trace.halvings if seen == [pixels, stride]):
            layer = before[name] = model.get_submodule(name)
            is_stem = name == trace.halvings[0][0]
            other, words = _halving_less(layer, rest, weights.get(f"{name}.weight") if is_stem else None, is_stem)
            model.set_submodule(name, other)
            done.append(f"{name}: {words}")
        undone *= stride // rest
    if done and (fails := _Trace(model, shape, num_classes).failure):
        for name, layer in before.items():
            model.set_submodule(name, layer)
        done = []
        failure = failure and fails
    elif done:
        failure = None
    if failure:
        raise _DoesNotFit(failure)
    return done


def _halving_less(layer: Any, stride: int, weight: Tensor | None, is_stem: bool) -> tuple[nn.Module, str]:
    """Return what stands in for a layer with a smaller stride, and words for it."""
    if not isinstance(layer, nn.Conv2d):
        return nn.Identity(), "left out"
    other, kernel = copy.deepcopy(layer), layer.kernel_size[0]
    other.stride, words = (stride, stride), f"stride {layer.stride[0]} to {stride}"
    if not is_stem or type(layer) is not nn.Conv2d or kernel <= STEM_KERNEL:
        return other, words
    if stride > 1 or (weight is not None and weight.shape[2:] == layer.kernel_size):
        other.padding = ((kernel - 1) // 2,) * 2
        return other, words
    # The middle of the kernel, larger by as much as a family's initial weights are in a smaller kernel.
    begin = (kernel - STEM_KERNEL) // 2
    middle = slice(begin, begin + STEM_KERNEL)
    other.weight = nn.Parameter(layer.weight.detach()[..., middle, middle] * (kernel / STEM_KERNEL))
    other.kernel_size, other.padding = (STEM_KERNEL, STEM_KERNEL), (STEM_KERNEL // 2,) * 2
    return other, f"{words}, kernel {kernel} to {STEM_KERNEL}"


def read_weights(text: str) -> State:
    """Return the tensors of a file: a state_dict that torch or safetensors wrote, alone or in a checkpoint.

    Raises:
        UsageError: where it cannot be read, or is something else.
    """
    path = user_path(text, "model.weights")
    try:
        with path.open("rb"):
            pass
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        document = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"model.weights: {path}: {error.strerror}: correct the path, or put the file there") from None
    except ImportError:
        raise UsageError(f"model.weights: {path} needs safetensors: pip install 'budgettune[timm]'") from None
    except Exception as error:  # of a damaged file, or of one that holds code
        reason = type(error).__name__
        raise UsageError(f"model.weights: {path} is no file of weights ({reason}): save a state_dict in it") from None
    if isinstance(document, Mapping):  # of `budgettune train`, of timm's and of most people's checkpoints
        document = next(
            (document[key] for key in ("state_dict", "model") if isinstance(document.get(key), Mapping)), document
        )
    if not isinstance(document, Mapping) or not all(isinstance(value, Tensor) for value in document.values()):
        raise UsageError(f"model.weights: {path} holds no state_dict: save one with torch.save")
    return document


def fill(model: nn.Module, weights: State, spec: ModelSpec, num_classes: int) -> str:
    """Give a model the weights of a file, but for a head of other classes, and return words on what was done.

    Weights of a first convolution for other channels are summed over them.

    Raises:
        SpecError: where they are another network's.
    """
    own, fresh = model.state_dict(), []
    stem = next((f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)), None)
    taken: dict[str, Tensor] = {}
    faults = [f"{key} is not in the model" for key in weights.keys() - own.keys()]
    for key, tensor in own.items():
        given = weights.get(key)
        if given is None and not key.endswith("num_batches_tracked"):
            faults.append(f"{key} is not in the file")
        elif given is None or given.shape == tensor.shape:
            taken[key] = tensor if given is None else given
        elif tensor.ndim and tensor.shape[0] == num_classes and given.shape[1:] == tensor.shape[1:]:
            taken[key] = tensor
            fresh.append(key)
        elif key == stem and given.shape[:1] + given.shape[2:] == tensor.shape[:1] + tensor.shape[2:]:
            taken[key] = given.sum(1, keepdim=True).expand_as(tensor) / tensor.shape[1]
        else:
            faults.append(f"{key} is {list(given.shape)} in the file and {list(tensor.shape)} in the model")
    if faults:
        more = f", and {len(faults) - 1} more such" if len(faults) > 1 else ""
        raise SpecError(f"model.weights: {spec.weights} does not fit {spec.name}: {min(faults)}{more}")
    model.load_state_dict(taken)
    if not fresh:
        return str(spec.weights)
    listed = ", ".join(fresh)
    warn_once(logger, f"model.weights: {spec.weights} is for other classes: {listed} begin as initialised")
    return f"{spec.weights}, but {listed} as initialised"
