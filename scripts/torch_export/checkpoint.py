"""PyTorch checkpoints: a file of weights and the architecture they belong to -> a module.

Only weights are read (`weights_only`): a checkpoint that would run code of its own is refused.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.lab.export.parity import ExportError
from scripts.torch_export.foamliu import FoamliuMobileFaceNet
from scripts.torch_export.iresnet import DEPTHS, IResNet
from scripts.torch_export.mobilefacenet import SHAPES, MobileFaceNet

# Under which training scripts file the backbone's weights, outermost first.
ENVELOPES = ("state_dict", "state_dict_backbone", "model_state_dict", "model", "backbone")
# What data-parallel training, compilation and Lightning put before every name.
OUTERMOST = re.compile(r"^(module\.|_orig_mod\.|model\.|backbone\.|net\.)")
PREFIX = re.compile(rf"^({OUTERMOST.pattern[1:]})+")
# The counter of training steps has no part in inference.
COUNTER = "num_batches_tracked"

Weights = Mapping[str, Any]
# By name: (the parameter whose first axis is the dimension, how the network is made).
BACKBONES: Mapping[str, tuple[str, Callable[[int], nn.Module]]] = {
    **{name: ("fc.weight", partial(IResNet, depths)) for name, depths in DEPTHS.items()},
    **{
        name: ("features.layers.2.weight", partial(MobileFaceNet, shape))
        for name, shape in SHAPES.items()
    },
    "mobilefacenet-foamliu": ("conv3.weight", FoamliuMobileFaceNet),
}


def load_network(source: Path, architecture: str) -> nn.Module:
    """The network of a checkpoint, ready for inference.

    `architecture` is one of ARCHITECTURES, `auto` to find the one whose weights have these names
    and shapes, or `module:function`, which is called without arguments and returns an `nn.Module`.
    Raises ExportError for a file that cannot be read and for weights that do not fit.
    """
    weights = read_weights(source)
    plain = {PREFIX.sub("", name): value for name, value in weights.items()}
    if ":" in architecture:
        network = _imported(architecture)
        weights = _named_for(network, weights) or plain
    else:
        network = _known(plain, architecture, source)
        weights = plain
    if reason := misfit(network, weights):
        raise ExportError(f"{source} holds no weights of {architecture}: {reason}")
    network.load_state_dict(weights, strict=False)
    return network.eval()


def _named_for(network: nn.Module, weights: Weights) -> Weights | None:
    """The weights under the names of a network whose own parts may be called like a prefix: one
    prefix after the other is taken off until they fit."""
    while misfit(network, weights):
        shorter = {OUTERMOST.sub("", name): value for name, value in weights.items()}
        if shorter.keys() == weights.keys():
            return None
        weights = shorter
    return weights


def read_weights(source: Path) -> Weights:
    """The weights by the names they were saved under. Raises ExportError."""
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ExportError(f"{source} cannot be read: {error.strerror}") from error
    except Exception as error:  # pickle, zipfile and torch each raise classes of their own
        raise ExportError(
            f"{source} is not a checkpoint of weights alone: {_first_line(error)}. Save it again "
            "by torch.save(model.state_dict(), path)."
        ) from error
    for envelope in ENVELOPES:
        if isinstance(content, Mapping) and isinstance(content.get(envelope), Mapping):
            content = content[envelope]
    if not isinstance(content, Mapping):
        raise ExportError(f"{source} holds a {type(content).__name__}, not named weights")
    weights = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not weights:
        raise ExportError(f"{source} holds no weights")
    return weights


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _imported(name: str) -> nn.Module:
    module, _, function = name.partition(":")
    try:
        network = getattr(importlib.import_module(module), function)()
    except Exception as error:  # somebody else's code
        raise ExportError(f"{name} could not be called without arguments: {error}") from error
    if not isinstance(network, nn.Module):
        raise ExportError(f"{name} returned a {type(network).__name__}, not a torch.nn.Module")
    return network


def _known(weights: Weights, architecture: str, source: Path) -> nn.Module:
    if architecture != "auto" and architecture not in BACKBONES:
        raise ExportError(
            f"there is no architecture '{architecture}'; there are auto, "
            f"{', '.join(BACKBONES)}, and module:function of your own"
        )
    for name in BACKBONES if architecture == "auto" else [architecture]:
        key, make = BACKBONES[name]
        # Without memory or random numbers: most of those tried will not fit.
        with torch.device("meta"):
            network = make(len(weights[key])) if key in weights else None
        if network is not None and not (architecture == "auto" and misfit(network, weights)):
            return make(len(weights[key]))
    raise ExportError(
        f"{source} holds no weights of {architecture}: "
        + ("no known architecture has such names" if architecture == "auto" else f"no {key}")
    )


def misfit(network: nn.Module, weights: Weights) -> str | None:
    """Why these weights are not the network's, None where they are."""
    wanted = {n: v.shape for n, v in network.state_dict().items() if not n.endswith(COUNTER)}
    given = {n: v.shape for n, v in weights.items() if not n.endswith(COUNTER)}
    for name in wanted.keys() - given.keys():
        return f"{name} is missing"
    for name in given.keys() - wanted.keys():
        return f"{name} is none of its"
    for name, shape in wanted.items():
        if given[name] != shape:
            return f"{name} has the shape {tuple(given[name])}, not {tuple(shape)}"
    return None
