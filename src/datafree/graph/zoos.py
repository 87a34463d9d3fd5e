"""Named models: timm, torchvision, the hub, and the bundled networks, each with the card that says what it eats."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from datafree.bundled import NETWORKS, weights_path
from datafree.graph.checkpoint import fill, read_checkpoint
from datafree.spec import InputSpec, Refusal

Card = dict[str, Any]
"""Fields of an InputSpec that the model's publisher states."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a network is built for, where that is not what its publisher says. seed: of its random weights"""

    classes: int | None = None
    channels: int | None = None
    seed: int = 0


AS_PUBLISHED = Wanted()


def from_timm(name: str, pretrained: bool, wanted: Wanted = AS_PUBLISHED) -> tuple[nn.Module, Card]:
    """`NAME` or `NAME.tag` of timm."""
    timm = _library("timm", "timm")
    if not timm.is_model(name.split(".")[0]):
        raise _unknown(f"timm:{name}", name, timm.list_models())
    given = _timm_arguments(wanted)
    build = lambda: timm.create_model(name, pretrained=pretrained, **given)  # noqa: E731
    model = _build(f"timm:{name}", build, pretrained, wanted.seed)
    return model, _timm_card(model)


def from_hub(repository: str, pretrained: bool, wanted: Wanted = AS_PUBLISHED) -> tuple[nn.Module, Card]:
    """`OWNER/NAME` on the hub, in timm's layout (config.json beside model.safetensors)."""
    timm = _library("timm", "timm")
    given = _timm_arguments(wanted)
    build = lambda: timm.create_model(f"hf-hub:{repository}", pretrained=pretrained, **given)  # noqa: E731
    model = _build(f"hf:{repository}", build, True, wanted.seed)
    return model, _timm_card(model)


def from_torchvision(name: str, pretrained: bool, wanted: Wanted = AS_PUBLISHED) -> tuple[nn.Module, Card]:
    """`NAME`, or `NAME.WEIGHTS` as in `resnet50.IMAGENET1K_V1`; by default the weights torchvision calls DEFAULT."""
    models = _library("torchvision.models", "torchvision")
    name, _, tag = name.partition(".")
    if name not in models.list_models():
        raise _unknown(f"torchvision:{name}", name, models.list_models())
    weights = models.get_model_weights(name)
    if tag and tag not in weights.__members__:
        raise _unknown(f"torchvision:{name}.{tag}", tag, weights.__members__)
    chosen = weights[tag or "DEFAULT"]
    given: dict[str, Any] = {} if wanted.classes is None else {"num_classes": wanted.classes}
    build = lambda: models.get_model(name, weights=chosen if pretrained else None, **given)  # noqa: E731
    return _build(f"torchvision:{name}", build, pretrained, wanted.seed), _torchvision_card(chosen.transforms())


def from_bundled(name: str, pretrained: bool, wanted: Wanted = AS_PUBLISHED) -> tuple[nn.Module, Card]:
    """A network that ships with the package; its input and its classes are what they are."""
    if name not in NETWORKS:
        raise _unknown(f"bundled:{name}", name, NETWORKS)
    model = _build(f"bundled:{name}", importlib.import_module(f"datafree.bundled.{name}").build, False, wanted.seed)
    if pretrained:
        fill(model, read_checkpoint(weights_path(name)), f"bundled:{name}")
    return model, {field: getattr(NETWORKS[name], field) for field in InputSpec.__dataclass_fields__}


ZOOS: dict[str, Callable[[str, bool, Wanted], tuple[nn.Module, Card]]] = {
    "timm": from_timm,
    "torchvision": from_torchvision,
    "hf": from_hub,
    "bundled": from_bundled,
}
"""Prefix of a model's name -> the door behind it."""


def _timm_arguments(wanted: Wanted) -> dict[str, Any]:
    given = {"num_classes": wanted.classes, "in_chans": wanted.channels}
    return {name: value for name, value in given.items() if value is not None}


def _timm_card(model: nn.Module) -> Card:
    stated = dict(getattr(model, "pretrained_cfg", None) or {})
    names = {"input_size": "shape", "mean": "mean", "std": "std", "crop_pct": "crop", "num_classes": "classes"}
    card = {ours: stated[theirs] for theirs, ours in names.items() if stated.get(theirs)}
    if stated.get("interpolation") in ("bilinear", "bicubic", "nearest"):
        card["interpolation"] = stated["interpolation"]
    return card


def _torchvision_card(transforms: Any) -> Card:
    if not hasattr(transforms, "crop_size"):  # detection and its kin: no fixed input size is published
        return {}
    side = transforms.crop_size[0]
    return {
        "shape": (len(transforms.mean), side, side),
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "interpolation": transforms.interpolation.value,
        "crop": min(1.0, side / transforms.resize_size[0]),
    }


def _library(module: str, extra: str) -> ModuleType:
    """Import an optional library. One that is there but broken is refused too, never patched behind the user's back."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Refusal(
            f"models of {extra} cannot be opened",
            why=f"the package {error.name} is not installed",
            remedy=f"pip install 'datafree[{extra}]'",
        ) from error
    except Exception as error:  # torchvision built for another torch: "operator torchvision::nms does not exist"
        raise Refusal(
            f"models of {extra} cannot be opened",
            why=f"importing {module} fails: {' '.join(str(error).split())[:160]}",
            remedy="install torch and torchvision from the same wheel index (both for CPU, or both for the same CUDA)",
        ) from error


def _build(name: str, make: Callable[[], nn.Module], download: bool, seed: int) -> nn.Module:
    """Call the constructor. Random weights are those of the seed, and the caller's random state is left alone."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            return make()
    except Exception as error:  # constructors and download clients raise kinds of their own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if download:
            raise Refusal(
                f"{name} was not fetched",
                why=reason,
                remedy="check the network, or pass weights you have with --checkpoint, or append ?random",
            ) from error
        raise Refusal(
            f"{name} was not built", why=reason, remedy="choose a model that builds with its defaults"
        ) from error


def _unknown(what: str, name: str, known: Iterable[str]) -> Refusal:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or (known if len(known) < 9 else [])
    return Refusal(
        f"{what} is not known",
        why="there is no model of that name",
        remedy=f"did you mean {', '.join(near)}" if near else "look the name up in the library's own list",
    )
