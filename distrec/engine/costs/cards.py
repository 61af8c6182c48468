"""The usual cards, as their makers' data sheets have them; the one table of `distrec plan` and of the meter's MFU.

Source: NVIDIA's data sheets of H100, H200, A100, A6000, L40S, L4, V100 and HGX B200; white papers "Ampere GA102" (A6000) and
"Ada" (RTX 4090).  Sheets that print products with sparsity are halved: all rates here are dense, accumulated in float32.
"""

import re
from dataclasses import dataclass

import torch

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Device:
    """What a process has to itself.

    Units: `gib` GiB that are free on an idle card; `bf16`, `tf32`, `float32` FLOP/s of dense products; bytes/s: `inside`
    a node and `between` nodes, and of its `memory`.  `name` is a regular expression of what the driver calls the card.
    """

    gib: float
    bf16: float
    tf32: float
    float32: float
    inside: float
    between: float
    memory: float
    name: str = ""

    def peak(self, kind: torch.dtype, precision: str) -> float:
        """FLOP/s of products of this type; with `precision` = tf32 those of float32 round their factors to TF32."""
        if kind in _HALF:
            return self.bf16
        return self.tf32 if precision == "tf32" else self.float32


DEVICES = {
    "b200": Device(178, 2250e12, 1125e12, 75e12, 900e9, 50e9, 8.0e12, "NVIDIA B200"),
    "h200": Device(139, 989e12, 495e12, 67e12, 450e9, 50e9, 4.8e12, "NVIDIA H200"),
    "h100": Device(78, 989e12, 495e12, 67e12, 450e9, 50e9, 3.35e12, "NVIDIA H100 80GB HBM3"),
    "h100_pcie": Device(78, 756e12, 378e12, 51e12, 64e9, 50e9, 2.0e12, "NVIDIA H100 PCIe"),
    "a100": Device(78, 312e12, 156e12, 19.5e12, 300e9, 25e9, 2.0e12, r"NVIDIA A100(-SXM4-80GB| 80GB PCIe)"),
    "a100_40": Device(39, 312e12, 156e12, 19.5e12, 300e9, 25e9, 1.55e12, r"(NVIDIA )?A100-(SXM4|PCIE)-40GB"),
    "l40s": Device(44, 362e12, 183e12, 91.6e12, 32e9, 25e9, 0.86e12, "NVIDIA L40S"),
    "l4": Device(22, 121e12, 60e12, 30.3e12, 32e9, 25e9, 0.3e12, "NVIDIA L4"),
    "a6000": Device(47, 155e12, 77.4e12, 38.7e12, 32e9, 25e9, 0.77e12, "NVIDIA RTX A6000"),
    "rtx4090": Device(23, 165e12, 82.6e12, 82.6e12, 32e9, 10e9, 1.0e12, "NVIDIA GeForce RTX 4090"),
    # V100 has neither bfloat16 nor TF32: both run at float32's rate
    "v100": Device(31, 15.7e12, 15.7e12, 15.7e12, 150e9, 12.5e9, 0.9e12, r"Tesla V100-SXM[23]-\d+GB(-LS)?"),
}


def named(card: str) -> Device | None:
    """The card of this name; None for one that the table lacks, or for a slice of one (MIG)."""
    return next((device for device in DEVICES.values() if re.fullmatch(device.name, card)), None)
