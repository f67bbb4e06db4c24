"""The complexity table: counted by hand, and as the peers' tables count."""

import re

import pytest
import torch
from torch import nn

from inference import Derainer
from networks import DerainNet, Fusion
from tests import small
from tests.plain import plain
from tools.cost import macs


class PReNetsConvolutions(nn.Module):
    """Every convolution of PReNet: 32 channels, an LSTM of four, five residual blocks, in six recursions."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(6, 32), *[(64, 32)] * 4, *[(32, 32)] * 10, (32, 3)]
        self.layers = nn.ModuleList(nn.Conv2d(*size, 3, padding=1) for size in sizes)

    def forward(self, image):
        for _ in range(6):
            for layer in self.layers:
                layer(image[:, :1].expand(-1, layer.in_channels, -1, -1))


def test_macs_are_counted_as_the_peers_tables_count_them():
    """Derain-toolbox has 66.56 G of PReNet at 256x256, biases and the like included."""
    assert macs(PReNetsConvolutions(), (256, 256)) == pytest.approx(66.56e9, rel=0.005)


def test_macs_of_a_convolution_and_of_a_fusion_are_those_counted_by_hand():
    assert macs(nn.Conv2d(3, 8, 3, padding=1), (16, 20)) == 16 * 20 * 8 * 3 * 9

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fusion = Fusion(9, 5)

        def forward(self, image):
            half = image[..., ::2, ::2]
            return self.fusion(iter([image, image + 1, half]))

    # a same-sized map is added in place, a smaller one meets its slice at its own size
    assert macs(Fused(), (16, 20)) == (2 * 16 * 20 + 8 * 10) * 3 * 5


def test_the_plain_formulation_of_the_papers_network_has_the_macs_that_its_layers_have():
    net = plain(DerainNet((4, 6, 8), (2, 1, 1)))
    counted = []
    original = torch.nn.functional.conv2d

    def conv2d(x, weight, *more, **named):
        output = original(x, weight, *more, **named)
        counted.append(output[0].numel() * weight[0].numel())
        return output

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "conv2d", conv2d)
        net(torch.rand(1, 3, 32, 48))
    assert macs(net, (32, 48)) == sum(counted) > 0


def test_the_table_is_of_the_checkpoint(tmp_path, run_here, capsys):
    small.trained(small.teacher(tmp_path, steps=1))
    words = ["--logdir", str(tmp_path / "teacher"), "--size", "48,64", "--rounds", "2", "--use_GPU", "False"]
    assert run_here("tools/cost.py", *words) == 0
    head, _, row, _, notes = capsys.readouterr().out.splitlines()[-5:]
    shown = dict(
        zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, row)), strict=True)
    )
    net = Derainer.open(tmp_path / "teacher").net.net
    parameters = sum(each.numel() for each in net.parameters())
    assert shown["model"] == f"SID, {tmp_path / 'teacher/net_latest'}" and shown["size"] == "64x48"
    assert shown["parameters"] == f"{parameters / 1e6:.2f} M" and notes.startswith(f"{parameters:,} ")
    assert shown["MACs"] == f"{macs(net, (48, 64)) / 1e9:.1f} G"
    assert float(shown["time"].split()[0]) > 0 and re.fullmatch(r"\d+\.\d\d GB", shown["peak memory"])
    assert run_here("tools/cost.py", "--logdir", str(tmp_path / "nowhere")) == 2
    assert run_here("tools/cost.py", *words[:2], "--size", "48") == 2
