"""Reads the authors' released checkpoints into our network.

Theirs is a `torch.save` of {'net': state_dict, 'clock_net': step, 'opt_net': ...}. Its keys may begin with
'module.' (DataParallel); they repeat a stage's one unit for each position and include five unused fusions;
and the network takes BGR images.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils import UserError

# released name (a regular expression; applied in this order), our name
NAMES = (
    (r"^module\.", ""),
    (r"^head\.convLayer_(\d)\.0", r"head\1"),
    (r"^tail\.catLayer\.0", "tail"),
    (r"^encoder_decoder_4\.enLayer_4", "quarter_branch"),
    (r"^encoder_decoder_2\.catLayer_2\.0", "half_branch.down4"),
    (r"^encoder_decoder_2\.catLayer_3\.0", "half_branch.up2"),
    (r"^encoder_decoder_1\.catLayer_1\.0", "full_branch.down2"),
    (r"^encoder_decoder_1\.catLayer_2\.0", "full_branch.down4"),
    (r"^encoder_decoder_1\.catLayer_3\.0", "full_branch.up2"),
    (r"^encoder_decoder_1\.catLayer_4\.0", "full_branch.up1"),
    (r"^encoder_decoder_2\.", "half_branch."),
    (r"^encoder_decoder_1\.", "full_branch."),
    (r"\.enLayer_(\d)", r".encode\1"),
    (r"\.deLayer_(\d)", r".decode\1"),
    (r"\.conv1x1\.(\d+)\.0", r".fusions.\1"),
    (r"\.units\.\d+\.unit\.", ".unit."),
    (r"\.scale(\d)\.(\d)\.0", r".chain\1.\2"),
    (r"\.fusion(\d\d)\.0", r".fuse\1"),
    (r"\.fusion_all\.0", ".fuse_all"),
    (r"\.conv_([35])_([12])", r".conv\1_\2"),
    (r"\.confusion", ".fuse"),
)
# stages whose output is unused, and with it their last fusion (networks.DenseFeatures)
WITHOUT_OUTPUT = (
    "half_branch.encode2",
    "half_branch.encode4",
    "full_branch.encode1",
    "full_branch.encode2",
    "full_branch.encode4",
)


def is_released(net: Mapping[str, Tensor]) -> bool:
    """Whether weights are the authors', by their names."""
    return any("encoder_decoder_1." in name for name in net)


def from_released(net: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The authors' weights under our names, for RGB images, without the unused fusions.

    Raises UserError where the tied positions of a stage have different weights: that is another network.
    """
    weights: dict[str, Tensor] = {}
    for released_name, value in net.items():
        name = released_name
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        if not torch.equal(weights.setdefault(name, value), value):
            raise UserError(
                f"{path}: {released_name} differs from its stage's other units, which are tied in SSID-KD"
            )
    for stage in WITHOUT_OUTPUT:
        last = _fusions(weights, stage) - 1
        for kind in ("weight", "bias"):
            weights.pop(f"{stage}.fusions.{last}.{kind}", None)
    ends = {"head1.weight": 1, "head2.weight": 1, "head4.weight": 1, "tail.weight": 0, "tail.bias": 0}
    for name, channels in ends.items():
        if name not in weights:
            raise UserError(f"{path} has no {name}: download it again")
        weights[name] = weights[name].flip(channels)  # BGR in, BGR out
    return weights


def network_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """How to build the network of `weights`, from their names and shapes."""
    heads = (weights.get(f"head{scale}.bias") for scale in (1, 2, 4))
    channels = [len(bias) if bias is not None and bias.ndim else 0 for bias in heads]
    stages = ("full_branch.decode1", "half_branch.decode2", "quarter_branch")
    units = [_fusions(weights, stage) for stage in stages]
    return {"backbone": "DerainNet", "arguments": {"channels": channels, "units": units}}


def _fusions(weights: Mapping[str, Tensor], stage: str) -> int:
    """The number of a stage's fusions."""
    return sum(key.startswith(f"{stage}.fusions.") and key.endswith(".weight") for key in weights)
