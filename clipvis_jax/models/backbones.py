"""The kinds of CLIP image encoders. A new one is a module such as ``clip_resnet`` and an entry here."""

from clipvis_jax.models.clip_convnext import CONVNEXTS, ConvNextConfig
from clipvis_jax.models.clip_resnet import RESNETS, ResNetConfig

Backbone = ResNetConfig | ConvNextConfig
"""Sizes of an image encoder. They know the modules and their names in the original checkpoints."""

KINDS: dict[str, type[Backbone]] = {kind.kind: kind for kind in (ResNetConfig, ConvNextConfig)}

BACKBONES: dict[str, Backbone] = {**RESNETS, **CONVNEXTS}
"""The published image encoders that are supported, by open_clip's names."""
