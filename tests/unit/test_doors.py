"""Every form of MODEL: what opens, what it is said to eat, and what is refused with which remedy."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from datafree.graph import zoos
from datafree.graph.doors import open_model
from datafree.spec import InputSpec, Refusal

INPUTS = InputSpec(shape=(3, 8, 8), mean=(0.5,), std=(0.5,))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with a module of the user's in it."""
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))\n"
        "def number():\n    return 3\n"
        "def fails():\n    raise KeyError('width')\n"
    )
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_a_module_opens_and_is_left_as_it_was():
    model = net().train()
    graph = open_model(model, inputs=INPUTS)
    assert model.training
    assert graph.inputs.classes == 5
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(graph(x), model.eval()(x))


def test_a_function_of_the_current_folder_with_a_checkpoint(here, tmp_path):
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    path_before = list(sys.path)
    graph = open_model(
        f"{here}:build", checkpoint="w.safetensors", inputs={"shape": (3, 8, 8), "mean": (0.5,), "std": (0.5,)}
    )
    assert graph.inputs == InputSpec(shape=(3, 8, 8), mean=(0.5,), std=(0.5,), classes=5)
    assert torch.equal(graph.tensor("3.weight"), net().state_dict()["3.weight"])
    assert sys.path == path_before


@pytest.mark.parametrize(
    ("function", "said"), [("number", "returned a int"), ("fails", "KeyError"), ("missing", "has no attribute")]
)
def test_a_function_that_gives_no_model(here, function, said):
    with pytest.raises(Refusal, match=said):
        open_model(f"{here}:{function}", inputs=INPUTS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet18", "timm:NAME"),
        ("no_such_package:build", "no module no_such_package"),
        ("weights.pth", "--checkpoint weights.pth"),
        ("model.onnx", "no such file"),
        ("missing.pt2", "no such file"),
        ("bundled:digit", "did you mean digits"),
        (":f", "no form"),
        ("x:", "no form"),
    ],
)
def test_what_is_no_model(name, said):
    with pytest.raises(Refusal, match=said) as refused:
        open_model(name, inputs=INPUTS)
    assert "\n" not in str(refused.value)


def test_missing_shape_and_normalisation_are_asked_for(here):
    with pytest.raises(Refusal, match="--input"):
        open_model(f"{here}:build")
    with pytest.raises(Refusal, match="--mean and --std"):
        open_model(f"{here}:build", inputs={"shape": (3, 8, 8)})
    assert open_model(f"{here}:build", inputs={"shape": (3, 8, 8), "pixels": False}).inputs.std == (1.0, 1.0, 1.0)


def test_a_wrong_shape_is_refused_with_the_exporters_reason():
    with pytest.raises(Refusal, match=r"torch\.export says"):
        open_model(net(), inputs=InputSpec(shape=(1, 8, 8)))


def test_an_exported_program_knows_its_shape(tmp_path):
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=batch), tmp_path / "n.pt2")
    given = {"mean": (0.1,), "std": (0.2,)}
    assert open_model(tmp_path / "n.pt2", inputs=given).inputs == InputSpec(
        shape=(3, 8, 8), mean=(0.1,), std=(0.2,), classes=5
    )
    with pytest.raises(Refusal, match="exported for"):
        open_model(tmp_path / "n.pt2", inputs={**given, "shape": (3, 9, 9)})
    with pytest.raises(Refusal, match="--mean and --std"):
        open_model(tmp_path / "n.pt2")
    with pytest.raises(Refusal, match="its own weights"):
        open_model(tmp_path / "n.pt2", checkpoint="w.pt", inputs=given)


def test_the_bundled_network_needs_nothing():
    graph = open_model("bundled:digits")
    assert graph.inputs.shape == (1, 16, 16)
    assert sum(parameter.numel() for parameter in graph.module.parameters()) < 100_000
    random = open_model("bundled:digits?random")
    assert not torch.equal(graph.tensor("conv.weight"), random.tensor("conv.weight"))


def test_a_broken_library_is_refused_not_patched(monkeypatch):
    def fails(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(zoos.importlib, "import_module", fails)
    with pytest.raises(Refusal, match="same wheel index"):
        open_model("torchvision:resnet18?random")


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Refusal, match=r"datafree\[timm\]"):
        open_model("timm:resnet18?random")


def test_without_a_network_the_refusal_says_so(monkeypatch):
    def create_model(name, pretrained):
        assert pretrained
        raise OSError("Name or service not known")

    library = types.SimpleNamespace(is_model=lambda name: True, create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", library)
    for name in ("timm:resnet18", "hf:someone/net"):
        with pytest.raises(Refusal, match=r"was not fetched.*Name or service not known.*check the network"):
            open_model(name)


@pytest.mark.architectures
def test_cards_of_timm_and_torchvision():
    pytest.importorskip("timm")
    found = open_model("timm:resnet18.a1_in1k?random").inputs
    assert found == InputSpec(
        shape=(3, 224, 224),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        classes=1000,
        interpolation="bicubic",
        crop=0.95,
    )
    found = open_model("torchvision:resnet18?random", inputs={"shape": (3, 64, 64)}).inputs
    assert (found.shape, found.crop, found.interpolation, found.classes) == ((3, 64, 64), 0.875, "bilinear", 1000)


@pytest.mark.architectures
def test_random_weights_are_the_same_each_time_and_leave_the_callers_state_alone():
    pytest.importorskip("timm")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b = (open_model("timm:mobilenetv3_small_050?random", inputs={"shape": (3, 32, 32)}) for _ in range(2))
    assert torch.rand(1) == expected
    assert all(torch.equal(x, y) for x, y in zip(a.module.state_dict().values(), b.module.state_dict().values()))


@pytest.mark.architectures
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet81", "did you mean"),
        ("torchvision:resnet81", "did you mean"),
        ("torchvision:resnet18.IMAGENET", "IMAGENET1K_V1"),
    ],
)
def test_misspelt_names_are_answered_with_the_nearest(name, said):
    pytest.importorskip("timm")
    with pytest.raises(Refusal, match=said):
        open_model(name)
