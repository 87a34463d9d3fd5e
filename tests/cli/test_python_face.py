"""Three lines of Python do what the command line does."""

from __future__ import annotations

import pytest
import torch

import datafree
from datafree.bundled.digits import build
from datafree.export.overflow import sums_overflow
from datafree.recipes import ClosedForm


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return build()


@pytest.fixture(scope="module")
def inputs():
    return datafree.InputSpec(shape=(1, 16, 16), mean=(0.3,), std=(0.3,))


def test_from_a_module_to_a_saved_result(module, inputs, tmp_path):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = datafree.compress(module, inputs=inputs, weights=6, prune=0.25)
    assert result.summary["state"] == "unfinished", "not saved yet, and nothing written"
    folder = result.save(tmp_path / "out")
    assert (folder / "student.onnx").is_file()
    assert (folder / "ledger.jsonl").read_text().startswith('{"event": "start"')
    assert result.summary["state"] == "finished"
    here = "onnxruntime_avx2" if sums_overflow() else "onnxruntime"
    assert result.recipe == ClosedForm(weights=6, ratio=0.25, target=here)
    x = torch.randn(3, 1, 16, 16)
    assert result.student(x).shape == (3, 10)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items()), (
        "the model is left alone"
    )


def test_a_recipe_may_come_ready_made(module, inputs):
    recipe = ClosedForm(weights=4, activations=None)
    assert datafree.compress(module, inputs=inputs, recipe=recipe).recipe is recipe
    with pytest.raises(ValueError, match="ready made"):
        datafree.compress(module, inputs=inputs, recipe=recipe, weights=8)


def test_bad_requests_are_refused(module, inputs, tmp_path):
    with pytest.raises(datafree.Refusal, match="did you mean 'weights'"):
        datafree.compress(module, inputs=inputs, wieghts=4)
    with pytest.raises(datafree.Refusal, match="ratio = 1"):
        datafree.compress(module, inputs=inputs, prune=1)
    with pytest.raises(datafree.Refusal, match="is not known"):
        datafree.compress(module)
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(datafree.Refusal, match="not empty"):
        datafree.compress(module, inputs=inputs, folder=tmp_path)


def test_saving_needs_a_folder(module, inputs):
    result = datafree.compress(module, inputs=inputs)
    with pytest.raises(ValueError, match="needs a folder"):
        result.save()


def test_what_is_public_is_listed_and_there():
    assert len([name for name in datafree.__all__ if name[0].isupper()]) <= 12
    for name in datafree.__all__:
        assert getattr(datafree, name).__doc__
    assert set(datafree.__all__) <= set(dir(datafree))
    with pytest.raises(AttributeError, match="kompress"):
        _ = datafree.kompress
