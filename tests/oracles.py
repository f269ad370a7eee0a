"""Reference implementations from PyPI that cannot simply be imported."""

import enum
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path


def open_clip_bpe_path() -> Path:
    """CLIP's merges file as open_clip ships it, found without importing open_clip (which imports torch)."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None, "open_clip is not installed: see tests/requirements-oracles.txt"
    assert spec.origin is not None
    return Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz")


def install_torchvision_stub() -> None:
    """Make ``import open_clip`` and ``import timm`` work where torchvision is missing.

    Both import torchvision for image transforms, data sets and one norm layer, none of which is needed to
    build and run a model. The stand-in has the names that they import and nothing behind them. Does nothing
    where torchvision is installed, or the second time.
    """
    if importlib.util.find_spec("torchvision") is not None:
        return

    # transformers asks once whether torchvision is there and remembers: let it ask before the stand-in is.
    from transformers.utils import is_torchvision_available  # noqa: PLC0415

    is_torchvision_available()

    import torch  # noqa: PLC0415

    interpolation = enum.Enum("InterpolationMode", "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")
    transforms = "CenterCrop ColorJitter Compose Grayscale Normalize RandomResizedCrop Resize ToTensor"
    datasets = "CIFAR10 CIFAR100 FashionMNIST ImageFolder KMNIST MNIST"
    _add_module("torchvision")
    _add_module("torchvision.transforms", InterpolationMode=interpolation, **_empty_classes(transforms))
    _add_module("torchvision.transforms.functional", InterpolationMode=interpolation)
    _add_module("torchvision.datasets", **_empty_classes(datasets))
    _add_module("torchvision.ops")
    frozen_norm = type("FrozenBatchNorm2d", (torch.nn.Module,), {})
    _add_module("torchvision.ops.misc", FrozenBatchNorm2d=frozen_norm)


def _empty_classes(names: str) -> dict[str, type]:
    return {name: type(name, (), {}) for name in names.split()}


def _add_module(name: str, **contents: object) -> None:
    module = types.ModuleType(name)
    # Without a spec, importlib.util.find_spec fails on the module.
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None, is_package=True)
    module.__dict__.update(contents)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
