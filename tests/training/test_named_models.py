"""Models of torchvision and timm by name: what they are fitted to, what is refused, weights from a file."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import budgettune as bt
from budgettune.errors import SpecError, UsageError
from budgettune.spec.study_spec import load_spec
from budgettune.spec.tables import ModelSpec
from budgettune.spec.trust import Trust
from budgettune.training.data.load import load_data
from budgettune.training.learner import build_model
from budgettune.training.named_models import build_named, check_name
from budgettune.training.session import save_model
from budgettune.training.trainer import train
from budgettune.trial.accelerator import weights_sha256

pytestmark = pytest.mark.slow


TORCHVISION = (
    "resnet18",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "regnet_y_400mf",
    "densenet121",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
)
TIMM = (
    "resnet10t",
    "mobilenetv3_small_050",
    "efficientnet_lite0",
    "convnext_atto",
    "regnety_002",
    "densenet121",
    "test_resnet",
)


@pytest.fixture(scope="module")
def digits():
    return load_data(load_spec("digits").with_overrides(["data.evaluate_on=test"]).data)


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


def build(name, size=32, channels=1, **options):
    torch.manual_seed(0)
    spec = ModelSpec(name=name, options=options)
    return build_named(spec, channels=channels, num_classes=10, image_size=size)


def spec_of(*overrides):
    keep = ["search={}", "train.epochs=1", "train.batch_size=240", "train.optimizer=adam"]
    return load_spec("digits").with_overrides([*keep, *overrides])


def run(data, *overrides, seed=1):
    return train(spec_of(*overrides), seed=seed, data=data)


def names_of(families):
    return [f"{library}:{name}" for library, names in families.items() for name in names]


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize("name", names_of({"torchvision": TORCHVISION, "timm": TIMM}))
def test_families_of_convolutional_networks_take_small_images_and_say_how(name, size, request):
    if name.startswith("timm"):
        request.getfixturevalue("timm")
    model = build(name, size)
    logits = model(torch.randn(3, 1, size, size))
    logits.sum().backward()
    assert logits.shape == (3, 10)
    assert re.fullmatch(r"(timm|torchvision) [\d.]+\S*", model.architecture["library"])
    assert "stride" in model.architecture["stem"][0]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1", "timm:resnet10t"])
def test_images_of_any_channels_are_taken(name, channels, request):
    if name.startswith("timm"):
        request.getfixturevalue("timm")
    assert build(name, 32, channels)(torch.randn(2, channels, 32, 32)).shape == (2, 10)


def test_a_resnet_on_small_images_has_the_stem_of_the_resnets_for_cifar():
    model = build("torchvision:resnet18", 32)
    assert (model.conv1.kernel_size, model.conv1.stride, model.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(model.maxpool, nn.Identity)
    assert model.architecture["stem"] == ["conv1: stride 2 to 1, kernel 7 to 3", "maxpool: left out"]


def test_on_images_of_64_pixels_one_halving_goes_and_on_large_ones_none():
    assert build("torchvision:resnet18", 64).architecture["stem"] == ["conv1: stride 2 to 1, kernel 7 to 3"]
    large = build("torchvision:resnet18", 128)
    assert "stem" not in large.architecture
    assert large.conv1.kernel_size == (7, 7)


@pytest.mark.parametrize(
    ("name", "size", "fitting"),
    [
        ("torchvision:vit_b_16", 28, 32),
        ("timm:vit_tiny_patch16_224", 8, 32),
        ("timm:vit_tiny_patch16_224", 28, 32),  # timm would cut the rim off, and one patch be left
        ("timm:levit_128s", 28, 32),
    ],
)
def test_what_cannot_take_small_images_names_a_size_that_works(name, size, fitting, request):
    if name.startswith("timm"):
        request.getfixturevalue("timm")
    with pytest.raises(SpecError, match=rf"data\.image_size: {name} .* set data\.image_size = {fitting}\b"):
        build(name, size)
    assert build(name, fitting)(torch.randn(2, 1, fitting, fitting)).shape == (2, 10)


def test_a_transformer_is_built_for_the_size_and_takes_options(timm):
    model = build("timm:vit_tiny_patch16_224", 28, patch_size=4, depth=2)
    assert len(model.blocks) == 2
    assert model.pos_embed.shape[1] == 1 + 7 * 7


def test_options_reach_the_model():
    wide, narrow = (build("torchvision:mobilenet_v3_small", width_mult=width) for width in (1.0, 0.5))
    assert wide.features[0][0].out_channels == 2 * narrow.features[0][0].out_channels


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "torchvision:resnet18",
            {"depth": 3},
            "model.options.depth: torchvision:resnet18 has no such option; it takes",
        ),
        (
            "timm:resnet10t",
            {"depth": 3},
            "model.options.depth: timm:resnet10t has no such option; it takes .*drop_rate",
        ),
        ("torchvision:vit_b_16", {"patch_size": 4}, "model.options.patch_size: is fixed by torchvision:vit_b_16"),
        ("torchvision:resnet18", {"groups": 3}, "model.options: torchvision:resnet18 cannot be built with groups = 3"),
        (
            "torchvision:resnet19",
            {},
            "model.name: torchvision has no image classifier 'resnet19': did you mean resnet18",
        ),
        ("torchvision:fcn_resnet50", {}, "no image classifier"),  # one of segments
        ("torchvision:get_model", {}, "no image classifier"),  # a function, but no model
        ("timm:resnet10s", {}, "model.name: timm has no image classifier 'resnet10s': did you mean .*resnet10t"),
    ],
)
def test_what_a_library_does_not_have_is_one_sentence(name, options, message, request):
    if name.startswith("timm"):
        request.getfixturevalue("timm")
    with pytest.raises(SpecError, match=message) as caught:
        build(name, **options)
    assert "\n" not in str(caught.value)


def test_without_timm_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"pip install 'budgettune\[timm\]'"):
        check_name("timm:resnet10t")


def test_a_trial_learns_digits_of_8_pixels(digits, timm):
    result = run(digits, "model.name=timm:test_resnet", "train.epochs=3", "train.batch_size=64", "train.lr=3e-3").result
    assert result.test_accuracy > 0.8
    assert result.architecture["stem"]
    assert result.multiply_adds > 1_000_000


@pytest.mark.parametrize(
    ("name", "widths"), [("torchvision:resnet18", [64, 128, 256, 512]), ("torchvision:mobilenet_v3_small", None)]
)
def test_only_networks_without_grouped_convolutions_tell_widths_that_precision_goes_by(name, widths):
    assert build(name).architecture.get("widths") == widths


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "timm:test_resnet"])
def test_the_same_seed_gives_the_same_weights(name, digits, request):
    if name.startswith("timm"):
        request.getfixturevalue("timm")
    hashes = [run(digits, f"model.name={name}", seed=seed).result.weights_sha256 for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    names_of({"torchvision": (*TORCHVISION, "convnext_tiny"), "timm": (*TIMM, "swin_tiny_patch4_window7_224")}),
)
def test_every_family_trains_an_epoch_on_digits(name, digits, request):
    if name.startswith("timm"):
        request.getfixturevalue("timm")
    result = run(digits, f"model.name={name}", "train.lr_schedule=constant").result
    assert result.steps == 6


def filled(digits, path, *overrides):
    spec = spec_of(f"model.weights={path}", *overrides)
    return build_model(spec, digits)


@pytest.mark.parametrize("name", ["resnet", "torchvision:shufflenet_v2_x0_5", "timm:test_resnet"])
def test_a_model_that_was_trained_here_is_where_another_begins(name, digits, tmp_path, request):
    if name.startswith("timm"):
        request.getfixturevalue("timm")
    spec, path = spec_of(f"model.name={name}"), tmp_path / "model.pt"
    trained = train(spec, seed=1, data=digits)
    save_model(path, trained, spec, {})
    model = filled(digits, path, f"model.name={name}")
    assert weights_sha256(model) == trained.result.weights_sha256
    assert model.architecture["weights"] == str(path)


def test_pretrained_weights_keep_all_but_a_head_of_other_classes_and_colours_are_summed(digits, tmp_path, caplog):
    from torchvision.models import resnet18

    pretrained, path = resnet18(num_classes=17), tmp_path / "pretrained.pt"
    torch.save(pretrained.state_dict(), path)
    model = filled(digits, path, "model.name=torchvision:resnet18")
    assert torch.equal(model.layer1[0].conv1.weight, pretrained.layer1[0].conv1.weight)
    assert model.conv1.kernel_size == (7, 7)  # the file's
    torch.testing.assert_close(model.conv1.weight, pretrained.conv1.weight.sum(1, keepdim=True))
    assert model.fc.weight.shape == (10, 512)
    assert model.architecture["weights"] == f"{path}, but fc.weight, fc.bias as initialised"
    assert "is for other classes: fc.weight, fc.bias begin as initialised" in caplog.text
    assert model.architecture["stem"] == ["conv1: stride 2 to 1", "maxpool: left out"]


def test_safetensors_are_read(digits, tmp_path):
    torch_files = pytest.importorskip("safetensors.torch")
    model, path = build("torchvision:shufflenet_v2_x0_5", 8), tmp_path / "model.safetensors"
    torch_files.save_file(model.state_dict(), path)
    assert weights_sha256(filled(digits, path, "model.name=torchvision:shufflenet_v2_x0_5")) == weights_sha256(model)


def test_weights_of_another_network_are_one_sentence(digits, tmp_path):
    path = tmp_path / "other.pt"
    torch.save(build("torchvision:resnet18").state_dict(), path)
    with pytest.raises(SpecError, match=r"other\.pt does not fit torchvision:resnet34: .* more such$"):
        filled(digits, path, "model.name=torchvision:resnet34")


@pytest.mark.parametrize("content", [None, b"no weights", {"a": 1}, [1, 2]])
def test_a_file_that_holds_no_weights_is_named(content, digits, tmp_path):
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UsageError, match=rf"model\.weights: {re.escape(str(path))}"):
        filled(digits, path)


class Runs:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


def test_a_file_of_weights_runs_no_code(digits, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(Runs(), path)
    with pytest.raises(UsageError, match="is no file of weights"):
        filled(digits, path)


def test_a_study_of_a_shared_database_reads_weights_below_allowed_folders_only(tmp_path):
    spec = spec_of(f"model.weights={tmp_path / 'weights.pt'}")
    Trust.of_database("postgresql://anna@db/budgettune", roots=[str(tmp_path)]).check_files(spec)
    with pytest.raises(UsageError, match=r"model\.weights: .*--allow-root"):
        Trust.of_database("postgresql://anna@db/budgettune").check_files(spec)


def test_workers_train_names_side_by_side_and_answers_name_them(sqlite_url, timm):
    search = 'search={"model.name"=["timm:test_resnet", "torchvision:shufflenet_v2_x0_5", "resnet"]}'
    study = bt.create_study(spec_of(search), storage=sqlite_url)
    summary = bt.run_worker(study, bt.WorkerOptions(device="cpu", threads=1))
    assert summary.completed == 3
    front = bt.pareto_front(study)
    assert {record.params["model.name"] for record in bt.trial_records(study)} >= {
        record.params["model.name"] for record in front
    }
    bt.write_report(study, Path(sqlite_url.removeprefix("sqlite:///")).with_name("report.html"))


def test_a_study_that_asks_for_probes_trains_names_beside_the_built_in_network(sqlite_url):
    search = 'search={"model.name"=["resnet", "torchvision:shufflenet_v2_x0_5"]}'
    study = bt.create_study(spec_of(search, "predict.probe=1m"), storage=sqlite_url)
    assert bt.run_worker(study, bt.WorkerOptions(device="cpu", threads=1, trials=1)).completed == 1


def test_a_name_that_no_library_has_is_refused_when_its_study_is_made(sqlite_url, monkeypatch):
    with pytest.raises(SpecError, match="did you mean resnet18"):
        bt.create_study(spec_of("model.name=torchvision:resnet19"), storage=sqlite_url)
    monkeypatch.setitem(sys.modules, "timm", None)  # a machine without it may make studies for others
    bt.create_study(spec_of("model.name=timm:resnet10s"), storage=sqlite_url)
