"""Zhu et al. (2020, arXiv 2010.07334): binary weights and pruning of WRN-16-2 on CIFAR-10, without data.

The full text was read, so every figure is the paper's own. The manifest holds a WRN-16-2 of zero-shot transfer, to
which the paper refers. First and last layer stay in float, activations too. The number of rounds is not told; zero-shot
transfer takes 80,000, ours by default 2,000. The figures of lottery tickets rest on masks found with real data; here
masks are found in the game, so theirs stand beside as what they are.

One value of the second half of its first table reads lambda = 4e-3 where 4e-5 must be meant; those rows give parameters
only, and are left out.
"""

from __future__ import annotations

from typing import Any

from benchmarks.papers.setting import Chain, Network, Setting

PAPER, OURS = "zhu2020", "zhu2020, ours"


def _thin(divergence: str, gamma: float, ridge: float, threshold: float = 0.1, ramp: float = 0.0) -> Chain:
    slimming = {"divergence": divergence, "sparsity": gamma, "ridge": ridge, "ramp": ramp}
    return Chain(recipe="zhu2020", settings={"threshold": threshold, "slimming": slimming})


def _ticket(start: str) -> Chain:
    distiller: dict[str, Any] = {"name": "lottery", "start": start, "prunings": 13, "share": 0.2}
    return Chain(recipe="distilled", settings={"distiller": distiller})


_ONE_BIT = {"binary": {"per_channel": True, "statistics": 1.0}}

RECIPES = {
    PAPER: Chain(recipe="zhu2020"),
    OURS: Chain(recipe="zhu2020", settings=_ONE_BIT),
    "to binary": Chain(recipe="distilled", settings={"distiller": {"name": "zhu2020", "bits": 1}}),
    **{f"symmetric g2e-3 l{ridge}": _thin("symmetric", 2e-3, float(ridge)) for ridge in ("1e-5", "2e-5", "4e-5", "5e-5",
                                                                                        "6e-5")},
    "KL g1e-3 t.01": _thin("kl", 1e-3, 2e-5, 0.01),
    "KL g1e-3 t.1": _thin("kl", 1e-3, 2e-5),
    "KL g2e-3 t.01": _thin("kl", 2e-3, 2e-5, 0.01),
    "KL g2e-3 t.1": _thin("kl", 2e-3, 2e-5),
    "symmetric g1e-3 t.1": _thin("symmetric", 1e-3, 2e-5),
    "symmetric g3e-3 l5e-5": _thin("symmetric", 3e-3, 5e-5),
    "ramp g1e-2 l3e-4": _thin("symmetric", 1e-2, 3e-4, ramp=1.0),
    "ticket": _ticket("ticket"),
    "drawn weights": _ticket("drawn_weights"),
}  # fmt: skip
"""The paper's settings, each a chain of its own since the recipe's settings differ; and ours for binary weights."""

NETWORKS = {
    "wrn16_2_c10": Network(model="manifest:wrn16_2_c10", data="cifar10", why="of zero-shot transfer, 94.00 %"),
    "wrn40_2_c10": Network(
        model=None, data="cifar10", why="no library holds it: bring a teacher you trained (`benchmarks.gpu` trains one)"
    ),
}

_TABLE = "the paper's text"
_THIN = {
    "symmetric g2e-3 l1e-5": (92.77, "570K"),
    "symmetric g2e-3 l2e-5": (92.19, "408K"),
    "symmetric g2e-3 l4e-5": (90.79, "348K"),
    "symmetric g2e-3 l5e-5": (89.92, "337K"),
    "symmetric g2e-3 l6e-5": (89.17, "323K"),
    "KL g1e-3 t.01": (92.89, "462K"),
    "KL g1e-3 t.1": (92.88, "450K"),
    "KL g2e-3 t.01": (92.75, "478K"),
    "KL g2e-3 t.1": (73.48, "451K"),
    "symmetric g1e-3 t.1": (92.49, "445K"),
    "symmetric g3e-3 l5e-5": (90.57, "339K"),
    "ramp g1e-2 l3e-4": (89.19, "254K"),
}

PUBLISHED: dict[str, tuple[float | None, str]] = {
    "wrn16_2_c10/p0-w1a32": (88.98, f"{_TABLE}; 92.97 with real data"),
    "wrn40_2_c10/p0-w32a32-wrn16_2-binary": (88.14, f"{_TABLE}; the float student reaches 89.71"),
    "wrn40_2_c10/p0-w32a32-wrn16_2-ticket": (77.03, f"{_TABLE}, 53.0K weights, the mask found with real data"),
    "wrn40_2_c10/p0-w32a32-wrn16_2-drawn-weights": (75.48, f"{_TABLE}, the same mask"),
    **{
        f"wrn16_2_c10/p0-w32a32-{name.replace(' ', '-')}": (top1, f"{_TABLE}, {left} parameters")
        for name, (top1, left) in _THIN.items()
    },
}


def _rows() -> list[Setting]:
    one_bit = Setting(network="wrn16_2_c10", weights=1, activations=None, recipes=(PAPER, OURS))
    smaller = Setting(
        network="wrn40_2_c10", weights=None, activations=None, student="wrn16_2", recipes=("to binary",), note="binary"
    )
    thin = [
        Setting(network="wrn16_2_c10", weights=None, activations=None, recipes=(name,), note=name.replace(" ", "-"))
        for name in _THIN
    ]
    tickets = [
        Setting(network="wrn40_2_c10", weights=None, activations=None, student="wrn16_2", recipes=(name,),
                note=name.replace(" ", "-"))
        for name in ("ticket", "drawn weights")
    ]  # fmt: skip
    return [one_bit, smaller, *thin, *tickets]


SETTINGS = tuple(setting.told(PUBLISHED) for setting in _rows())
