"""How a model comes in: a name, a file or a module becomes a ModelGraph with its InputSpec."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.functional.scores import outputs
from datafree.graph.checkpoint import fill, read_checkpoint
from datafree.graph.exported import open_exported
from datafree.graph.model_graph import ModelGraph
from datafree.graph.zoos import AS_PUBLISHED, ZOOS, Card, Wanted
from datafree.spec import InputSpec, Refusal

FORMS = (
    "timm:NAME[.TAG], torchvision:NAME[.WEIGHTS], hf:OWNER/NAME, bundled:digits, FILE.pt2, FILE.onnx or "
    "package.module:function, ?random after a zoo's name for random weights"
)


def open_model(
    model: str | Path | nn.Module,
    *,
    checkpoint: str | Path | None = None,
    inputs: InputSpec | Mapping[str, Any] | None = None,
) -> ModelGraph:
    """Open a model as a graph.

    model: one of
        - `timm:NAME[.TAG]`, `torchvision:NAME[.WEIGHTS]`, `hf:OWNER/NAME` (timm's layout), `bundled:digits`:
          pretrained, fetched over the network where not cached; with `?random` appended, random weights of seed 0
        - `FILE.pt2`: an exported program; `FILE.onnx`: a float network, of whatever tool
        - `package.module:function`: a function without arguments that returns an nn.Module, found from the current
          folder too
        - an nn.Module
    checkpoint: a state dict that fills the architecture; nothing is fetched then
    inputs: what the model eats. An InputSpec is taken as it is; a mapping overrides single fields of the model's own
        card (`{"mean": (0.5,), "std": (0.5,)}`). Models without a card need `shape`, and for pixels `mean` and `std`

    Raises Refusal with cause and remedy for whatever cannot be opened.
    """
    if isinstance(model, nn.Module):
        return from_module(model, inputs=inputs, checkpoint=checkpoint)
    name = os.fspath(model)
    if name.endswith((".pt2", ".onnx")):
        if checkpoint is not None:
            raise Refusal(
                f"{name} takes no checkpoint", why="it holds its own weights", remedy="leave --checkpoint out"
            )
        return _with_classes(_from_file(name, inputs))
    prefix, colon, rest = name.partition(":")
    if colon and prefix in ZOOS:
        bare, random, _ = rest.partition("?random")
        built, card = ZOOS[prefix](bare, not random and checkpoint is None, AS_PUBLISHED)
    elif colon and prefix and rest:
        built, card = _call(prefix, rest), {}
    else:
        raise _not_a_model(name)
    return from_module(built, inputs=inputs, checkpoint=checkpoint, card=card, name=name)


def open_student(
    model: str | Path | nn.Module | ModelGraph,
    teacher: ModelGraph,
    *,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> ModelGraph:
    """Open a network that is to learn from a teacher: one that eats what the teacher eats and tells the same classes.

    model: as `open_model` takes it, or a graph. A named architecture is built for the teacher's channels and classes,
        where its library can, with random weights of this seed; `?random` may be written and changes nothing. A
        function or a module brings the weights it has
    checkpoint: a state dict that fills the architecture: a student that was begun elsewhere

    Raises Refusal when it cannot be opened, does not take the teacher's input, or answers in another shape.
    """
    name = str(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__
    if isinstance(model, ModelGraph):
        student = model
    else:
        prefix, _, rest = name.partition(":") if isinstance(model, str) else ("", "", "")
        if prefix in ZOOS:
            wanted = Wanted(classes=teacher.inputs.classes, channels=teacher.inputs.shape[0], seed=seed)
            built, _ = ZOOS[prefix](rest.partition("?random")[0], False, wanted)
            student = from_module(built, inputs=teacher.inputs, checkpoint=checkpoint, name=name)
        else:
            with torch.random.fork_rng(devices=[]):  # a function draws its weights when it is called
                torch.manual_seed(seed)
                student = open_model(model, checkpoint=checkpoint, inputs=teacher.inputs)
    _refuse_strangers(name, student, teacher)
    return student


def _from_file(name: str, inputs: InputSpec | Mapping[str, Any] | None) -> ModelGraph:
    """A graph that brings its own weights; how its input is normalised it does not tell."""
    if name.endswith(".pt2"):
        module, shape = open_exported(name)
        given = inputs if isinstance(inputs, InputSpec) else {"shape": shape, **(inputs or {})}
        return ModelGraph(module=module, inputs=_matching(name, _inputs(name, {}, given), shape))
    from datafree.graph.onnx_door import build_program, read_program, trace_program

    path, source = read_program(name)
    card = {"shape": source.shape} if source.shape is not None and None not in source.shape else {}
    spec = _inputs(name, card, inputs)
    if len(spec.shape) != 3 or any(told not in (None, side) for told, side in zip(source.shape or (), spec.shape)):
        spec = _matching(name, spec, tuple(side or 0 for side in source.shape or ()))
    return trace_program(build_program(path, source, spec.shape), spec)


def _refuse_strangers(name: str, student: ModelGraph, teacher: ModelGraph) -> None:
    """Raises Refusal when the two cannot be compared, image by image and class by class."""
    if student.inputs.shape != teacher.inputs.shape:
        raise Refusal(
            f"{name} cannot learn from this teacher",
            why=f"it eats {list(student.inputs.shape)}, the teacher {list(teacher.inputs.shape)}",
            remedy="choose a student for the teacher's input",
        )
    for what in ("mean", "std", "order"):
        mine, theirs = getattr(student.inputs, what), getattr(teacher.inputs, what)
        if mine != theirs:
            raise Refusal(
                f"{name} cannot learn from this teacher",
                why=f"its input's {what} is {mine}, the teacher's {theirs}",
                remedy="choose a student that sees the same pixels",
            )
    with torch.no_grad():
        answers = [outputs(graph(torch.zeros(2, *teacher.inputs.shape))) for graph in (student, teacher)]
    shapes = [[list(value.shape[1:]) for value in values] for values in answers]
    if shapes[0] != shapes[1]:
        said = [" and ".join(map(str, told)) + " numbers" for told in shapes]
        raise Refusal(
            f"{name} cannot learn from this teacher",
            why=f"it answers with {said[0]} for an image, the teacher with {said[1]}",
            remedy="choose a student with the teacher's classes",
        )


def from_module(
    module: nn.Module,
    *,
    inputs: InputSpec | Mapping[str, Any] | None,
    checkpoint: str | Path | None = None,
    card: Card | None = None,
    name: str = "",
) -> ModelGraph:
    """A module as a graph; `card` is what its publisher says it eats. Only a checkpoint changes the module.

    Weights of fewer or more bits than float32 (half precision, bfloat16, float64) are taken as float32, in a copy: what
    runtimes compute with, and what inputs come in.
    """
    if checkpoint is not None:
        fill(module, read_checkpoint(checkpoint), str(checkpoint))
    held = [*module.parameters(), *module.buffers()]
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in held):
        module = copy.deepcopy(module).float()
    return _with_classes(ModelGraph.trace(module, _inputs(name or type(module).__name__, card or {}, inputs)))


def _inputs(name: str, card: Card, given: InputSpec | Mapping[str, Any] | None) -> InputSpec:
    if isinstance(given, InputSpec):
        return given
    fields = {**card, **{key: value for key, value in (given or {}).items() if value is not None}}
    if "shape" not in fields:
        raise Refusal(
            f"the input of {name} is not known",
            why="the model has no card that states its input's shape",
            remedy="give --input CHANNELS,HEIGHT,WIDTH",
        )
    if fields.get("pixels", True) and not ("mean" in fields and "std" in fields):
        raise Refusal(
            f"the normalisation of {name} is not known",
            why="the model has no card that states the mean and standard deviation of its pixels",
            remedy="give --mean and --std (0 and 1 if it eats pixels scaled to 0..1)",
        )
    return InputSpec(**fields)


def _matching(name: str, inputs: InputSpec, shape: tuple[int, ...]) -> InputSpec:
    if inputs.shape != shape:
        raise Refusal(
            f"{name} does not eat inputs of shape {list(inputs.shape)}",
            why=f"it was exported for {list(shape)}",
            remedy="leave --input out, or export the model again",
        )
    return inputs


def _with_classes(graph: ModelGraph) -> ModelGraph:
    """Fill in the number of classes from the output [N, K], where nobody stated it."""
    if graph.inputs.classes is None:
        output = next(node for node in graph.module.graph.nodes if node.op == "output").all_input_nodes
        value = output[0].meta.get("val") if len(output) == 1 else None
        if isinstance(value, torch.Tensor) and value.ndim == 2:
            graph.inputs = replace(graph.inputs, classes=int(value.shape[1]))
    return graph


def _call(module: str, function: str) -> nn.Module:
    """Import the user's module and call the function he named. His code runs, since he named it."""
    what = f"{module}:{function}"
    with _current_folder_first():
        try:
            made: Any = importlib.import_module(module)
            for part in function.split("."):
                made = getattr(made, part)
            built = made if isinstance(made, nn.Module) else made()
        except ModuleNotFoundError as error:
            raise Refusal(
                f"{what} was not found",
                why=f"there is no module {error.name}",
                remedy=f"run from the folder it lies in, or install it; a model is {FORMS}",
            ) from error
        except Exception as error:  # the user's own code
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise Refusal(
                f"{what} did not give a model",
                why=reason,
                remedy="name a function that returns the nn.Module when called without arguments",
            ) from error
    if not isinstance(built, nn.Module):
        raise Refusal(
            f"{what} did not give a model",
            why=f"it returned a {type(built).__name__}",
            remedy="name a function that returns the nn.Module when called without arguments",
        )
    return built


@contextmanager
def _current_folder_first() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)


def _not_a_model(name: str) -> Refusal:
    suffix = Path(name).suffix
    if suffix in (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt"):
        why, remedy = "it holds weights, not an architecture", f"name the architecture and give --checkpoint {name}"
    else:
        why, remedy = "it has no form we know", f"give {FORMS}"
    return Refusal(f"{name!r} is not a model", why=why, remedy=remedy)
