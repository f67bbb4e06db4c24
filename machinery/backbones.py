"""The backbones by name: how one is built from a recipe or a checkpoint, and how it is run."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from machinery.checkpoints import load_weights
from machinery.lightnet import Encoded, LightNet
from networks import Derained, DerainNet
from utils import UserError, file_errors

# The networks that --backbone and checkpoints may name. Add yours here.
BACKBONES: dict[str, type[nn.Module]] = {"DerainNet": DerainNet, "LightNet": LightNet}


class AutocastModel(nn.Module):
    """Any backbone, run channels last and in the given arithmetic.

    Outputs are cast to float32, so losses and metrics never see bfloat16.
    """

    def __init__(self, net: nn.Module, precision: str = "float32") -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.precision = precision

    def forward(self, rainy: Tensor, **context: Any) -> Derained:
        """`context`: further inputs of a backbone, such as LightNet's `image_mean`."""
        with self._autocast(rainy):
            output = self.net(rainy.contiguous(memory_format=torch.channels_last), **context)
        return Derained(*(each.float() for each in output))

    def encoded(self, rainy: Tensor) -> Encoded | None:
        """See LightNet; None for a backbone that needs nothing of the whole image."""
        if getattr(self.net, "context", None) is None:
            return None
        with self._autocast(rainy):
            return self.net.encoded(rainy.contiguous(memory_format=torch.channels_last))

    def _autocast(self, rainy: Tensor) -> torch.autocast:
        return torch.autocast(rainy.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")


def architecture_of(recipe: Any) -> dict[str, Any]:
    """The recipe's backbone and those of its architecture options that this backbone takes.

    Raises UserError if BACKBONES has no such backbone.
    """
    options = {each.name for each in fields(recipe) if each.metadata.get("architecture")}
    taken = inspect.signature(_backbone(recipe.backbone)).parameters
    arguments = {name: getattr(recipe, name) for name in taken if name in options}
    return {"backbone": recipe.backbone, "arguments": arguments}


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """A network with random weights, from `architecture_of(recipe)` or a checkpoint's `network`.

    Raises UserError if no such network can be built.
    """
    name, arguments = architecture["backbone"], architecture["arguments"]
    said = ", ".join(f"{key} {value}" for key, value in arguments.items())
    try:
        return _backbone(name)(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"there is no {name} with {said}: {error}") from None


def for_training(net: nn.Module, recipe: Any) -> AutocastModel:
    """`net` set up for a recipe. Raises UserError if it does not support --recompute or --compile."""
    for wanted in ("recompute", "compile"):
        if getattr(recipe, wanted):
            if not hasattr(net, f"{wanted}_units"):
                raise UserError(f"--{wanted}: the backbone {recipe.backbone} does not offer it")
            getattr(net, f"{wanted}_units")()
    return AutocastModel(net, recipe.precision)


def network_from(content: Mapping[str, Any], path: Path) -> nn.Module:
    """The network in a checkpoint, in float32. Raises UserError if weights and architecture do not match."""
    if (name := content["network"]["backbone"]) not in BACKBONES:
        raise UserError(f"{path} needs a backbone {name!r}: backbones.BACKBONES has {', '.join(BACKBONES)}")
    # the arguments come from the file, so any error of the constructor is the file's
    with file_errors(path, "retrain", done="made a network of", kinds=(Exception,)), torch.device("meta"):
        # shapes only, until they are known to match the weights
        net = _backbone(name)(**content["network"]["arguments"])
    load_weights(net, content["net"], path)
    return net


def _backbone(name: str) -> type[nn.Module]:
    if name not in BACKBONES:
        raise UserError(f"there is no backbone {name!r}: backbones.BACKBONES has {', '.join(BACKBONES)}")
    return BACKBONES[name]
