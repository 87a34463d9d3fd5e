"""What the game is played with: images in bounds, BatchNorms that learn, a pool, a plan, ranks that agree."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from datafree.distill.adversarial import Adversarial
from datafree.distill.compiled import Compiled, pays
from datafree.distill.knowledge import Knowledge
from datafree.distill.play import Play
from datafree.distill.players import Artist
from datafree.distill.pool import Pool
from datafree.distill.table import Table
from datafree.graph import ModelGraph
from datafree.graph.watch import make_on
from datafree.graph.whole_student import WholeStudent
from datafree.run import Run
from datafree.spec import InputSpec
from zoo import ZOO, Head, conv_bn, randomise
from zoo_graphs import traced


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(shape: tuple[int, int, int], **spec) -> ModelGraph:
    model = randomise(nn.Sequential(conv_bn(shape[0], 4), Head(4)))
    return ModelGraph.trace(model, InputSpec(shape=shape, classes=10, **spec))


@pytest.mark.parametrize("ends", ["normal", "sigmoid"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 49, 10), (3, 5, 5)])
def test_images_lie_inside_the_bounds_of_pixels(shape, ends):
    teacher = network(shape, mean=(0.4,), std=(0.2,))
    artist = Artist(teacher, Play(latent=8, width=4, ends=ends), "cpu", chance())
    images = artist(3 * torch.randn(6, 8, generator=chance()))
    low, high = (torch.tensor(bound).reshape(1, -1, 1, 1) for bound in teacher.inputs.bounds())
    assert images.shape == (6, *shape)
    assert bool((images >= low - 1e-6).all() & (images <= high + 1e-6).all())
    assert images.std() > 0.05 * (high - low).mean()
    images.mean().backward()
    assert all(parameter.grad is not None for parameter in artist.net.parameters())


def test_features_have_no_bounds():
    teacher = network((1, 12, 8), pixels=False)
    artist = Artist(teacher, Play(latent=8, width=4), "cpu", chance())
    images = artist(torch.randn(64, 8, generator=chance())).detach()
    spread = (images - artist.mean) / artist.std
    assert float(spread.mean()) == pytest.approx(0, abs=0.1)
    assert float(spread.std()) == pytest.approx(1, abs=0.1)


def test_batchnorms_learn_as_pytorch_s_do():
    model, inputs = ZOO["residual"]()
    graph = ModelGraph.trace(model, inputs)
    whole = WholeStudent(graph, {}, batch_statistics=True)
    x = torch.randn(8, *inputs.shape, generator=chance())
    model.train()
    whole.module.train()
    assert torch.allclose(whole.module(x)[0], model(x), atol=1e-5)
    model.eval()
    whole.module.eval()
    assert torch.allclose(whole.module(x)[0], model(x), atol=1e-5)
    settled = whole.settled()
    assert torch.allclose(settled(x), model(x), atol=1e-5), "the graph remembers what its BatchNorms saw"
    assert not torch.allclose(settled(x), graph(x), atol=1e-3)


def test_tensors_are_made_where_the_game_is_played():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = conv_bn(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            places = torch.arange(16, device=x.device).float()
            return (self.body(x) * places).mean((2, 3))

    whole = WholeStudent(ModelGraph.trace(randomise(Positions()), ZOO["plain"]()[1]), {})
    make_on(whole.module, "meta")
    made = [node.kwargs["device"] for node in whole.module.graph.nodes if "device" in node.kwargs]
    assert made
    assert set(made) == {torch.device("meta")}


def test_the_pool_is_a_ring():
    inputs = InputSpec(shape=(1, 2, 2))
    pool = Pool(5, inputs, "cpu")
    assert len(pool.draw(4, chance(), augmented=True)) == 0
    for value in range(4):
        pool.add(torch.full((2, 1, 2, 2), float(value)))
    assert sorted(pool.images[:, 0, 0, 0].tolist()) == [1.0, 2.0, 2.0, 3.0, 3.0]
    drawn = pool.draw(4, chance(), augmented=False)
    assert set(drawn.unique().tolist()) <= {1.0, 2.0, 3.0}
    assert len(Pool(0, inputs, "cpu").draw(3, chance(), augmented=True)) == 0


def test_statistics_with_momentum_are_a_running_mean():
    teacher = traced("plain")
    settings = Adversarial(batch=4, latent=8, width=4, momentum=0.75, precision="float32")
    table = Table(teacher, teacher, settings, Knowledge(settings), Run())
    expected = None
    for seed in range(3):
        batch = [torch.rand(2, len(known.mean), generator=chance(seed)) for known in table.known.known]
        found = table._averaged(0, batch)
        expected = batch if expected is None else [0.75 * old + 0.25 * new for old, new in zip(expected, batch)]
        assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


def test_a_module_that_cannot_be_compiled_runs_as_it_is(monkeypatch):
    def refuse(module, **_):
        def fail(x):
            raise RuntimeError("no compiler")

        return fail

    monkeypatch.setattr(torch, "compile", refuse)
    run, module = Run(), nn.Linear(3, 2)
    compiled, x = Compiled(module, 4, run), torch.randn(4, 3)
    assert torch.equal(compiled(x), module(x))
    assert torch.equal(compiled(x), module(x))
    assert [entry["event"] for entry in run.ledger.entries] == ["note"]


def test_only_long_games_are_compiled():
    teacher = traced("plain")
    assert not pays(teacher, teacher, Adversarial(rounds=10), "cpu", float("inf"))
    assert pays(teacher, teacher, Adversarial(rounds=10**7), "cpu", float("inf"))
    assert not pays(teacher, teacher, Adversarial(rounds=10**7), "cpu", 60.0)
    assert pays(teacher, teacher, Adversarial(rounds=10, compile="always"), "cpu", 60.0)


RANKS = """
    import hashlib, sys, torch
    from datafree.distill import Choi2020
    from datafree.graph import ModelGraph
    from datafree.run import Run
    from datafree.run.ranks import Ranks
    from zoo import ZOO

    ranks = Ranks.join("cpu")
    told = torch.full((3,), float(ranks.rank))
    ranks.average([told])
    assert told.tolist() == [0.5, 0.5, 0.5] and ranks.agree(ranks.rank, 2.0) == [0.5, 2.0]
    teacher = ModelGraph.trace(*ZOO["plain"]())
    run = Run()
    method = Choi2020(rounds=3, warm_up=2, student_steps=2, batch=8, latent=8, width=4, precision="float32")
    trained = method.distill(teacher, teacher, run)
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in trained.state_dict().values())).hexdigest()
    events = sum(entry["event"] == "game" for entry in run.ledger.entries)
    moved = not torch.equal(trained.tensor("0.0.weight"), teacher.tensor("0.0.weight"))
    with open(f"{sys.argv[1]}/{ranks.rank}.txt", "w") as file:
        print(digest, events, moved, file=file)
"""


def test_ranks_end_with_one_student(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(textwrap.dedent(RANKS), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    command += [str(script), str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})
    assert found.returncode == 0, found.stderr[-2000:]
    first, second = ((tmp_path / f"{rank}.txt").read_text(encoding="utf-8").split() for rank in range(2))
    assert first[0] == second[0], "the same student on both"
    assert first[2] == "True"
    assert (int(first[1]) > 0, int(second[1])) == (True, 0), "one of them writes"
