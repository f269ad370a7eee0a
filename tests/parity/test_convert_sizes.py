"""Names and shapes of every published size, without a single weight: ours, the authors' and open_clip's."""

import ast
import functools
import re
from collections import Counter

import jax
import numpy as np
import pytest
from conftest import GOLDENS
from oracles import install_torchvision_stub

from clipvis_jax.models.backbones import BACKBONES
from clipvis_jax.models.clip_convnext import ConvNextConfig
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.weights.published_sizes import TEXT_TOWERS, infer_config
from clipvis_jax.weights.torch_names import CLIP_PREFIX, HEAD_PREFIX, IGNORED, TorchEntry, leaf_paths, torch_entry

install_torchvision_stub()

import open_clip  # noqa: E402
import torch  # noqa: E402

SIZES = list(BACKBONES)
PUBLISHED = {
    "RN50": ("RN50", "openai"),
    "RN101": ("RN101", "openai"),
    "RN50x4": ("RN50x4", "openai"),
    "RN50x16": ("RN50x16", "openai"),
    "RN50x64": ("RN50x64", "openai"),
    "convnext_base_w": ("convnext_base_w", "laion2b_s13b_b82k"),
    "convnext_base_w_320": ("convnext_base_w", "laion_aesthetic_s13b_b82k"),
    "convnext_large_d": ("convnext_large_d", "laion2b_s26b_b102k_augreg"),
    "convnext_large_d_320": ("convnext_large_d", "laion2b_s29b_b131k_ft"),
    "convnext_xxlarge": ("convnext_xxlarge", "laion2b_s34b_b82k_augreg"),
}
"""By open_clip's name of a model: our name of its size, and the tag of its published weights."""


def make_config(size: str, num_layers: int = 9) -> ClipVisConfig:
    decoder = QueryDecoderConfig(num_layers=num_layers)
    return ClipVisConfig(BACKBONES[size], TEXT_TOWERS[size], query_decoder=decoder)


@functools.cache
def abstract_clip(size: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the frozen CLIP, by path."""
    return leaf_paths(jax.eval_shape(ClipVis(make_config(size)).init_clip, jax.random.key(0)))


@functools.cache
def abstract_decoders(size: str, num_layers: int = 9) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what is trained, by path."""
    model = ClipVis(make_config(size, num_layers))
    return leaf_paths(jax.eval_shape(model.init_decoders, jax.random.key(0)))


def torch_entries(
    config: ClipVisConfig, leaves: dict[str, jax.ShapeDtypeStruct]
) -> list[tuple[TorchEntry, tuple[int, ...]]]:
    """Each leaf's entry in the authors' checkpoints and its shape there."""
    entries = [(torch_entry(path, leaf.shape, config), leaf.shape) for path, leaf in leaves.items()]
    return [(entry, entry.to_torch(np.broadcast_to(np.float32(0), shape)).shape) for entry, shape in entries]


def torch_shapes(config: ClipVisConfig, leaves: dict[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's entries, by name."""
    entries = torch_entries(config, leaves)
    stacked = {entry.key: (3 * shape[0], *shape[1:]) for entry, shape in entries if entry.part is not None}
    return {entry.key: shape for entry, shape in entries} | stacked


def without_ignored(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    ignored = re.compile("|".join(IGNORED))
    return {key: shape for key, shape in shapes.items() if not ignored.fullmatch(key)}


@functools.cache
def open_clip_model(name: str) -> torch.nn.Module:
    """Build open_clip's model without storage."""
    pretrained = open_clip.get_pretrained_cfg(name, PUBLISHED[name][1])
    with torch.device("meta"):
        return open_clip.CLIP(**open_clip.get_model_config(name), quick_gelu=pretrained.get("quick_gelu", False))


def test_all_sizes_are_compared():
    assert {size for size, _ in PUBLISHED.values()} == set(BACKBONES) == set(TEXT_TOWERS)


@pytest.mark.parametrize("size", SIZES)
def test_every_leaf_is_one_entry_and_every_entry_is_filled(size):
    leaves = abstract_clip(size) | abstract_decoders(size)
    entries = [entry for entry, _ in torch_entries(make_config(size), leaves)]
    shared = [key for key, count in Counter((entry.key, entry.part) for entry in entries).items() if count > 1]
    assert not shared, f"several leaves are the same entry: {shared}"
    parts: dict[str, set[int | None]] = {}
    for entry in entries:
        parts.setdefault(entry.key, set()).add(entry.part)
    incomplete = {key: found for key, found in parts.items() if found not in ({None}, {0, 1, 2})}
    assert not incomplete, f"stacked entries that lack a part: {incomplete}"


@pytest.mark.parametrize("size", SIZES)
def test_size_is_recovered_from_names_and_shapes(size):
    config = make_config(size)
    clip = torch_shapes(config, abstract_clip(size))
    decoders = torch_shapes(config, abstract_decoders(size))
    assert infer_config(clip | decoders, source=size) == (config, True)
    assert infer_config(clip, source=size) == (config, False)


@pytest.mark.parametrize("num_layers", [6, 9])
def test_number_of_decoder_layers_is_recovered(num_layers):
    config = make_config("RN50", num_layers)
    shapes = torch_shapes(config, abstract_clip("RN50") | abstract_decoders("RN50", num_layers))
    inferred, _ = infer_config(shapes, source="RN50")
    assert inferred.query_decoder.num_layers == num_layers
    assert inferred == config


AUTHORS = [("RN50", "video_r50_9layers"), ("convnext_base_w", "video_convnext_b_9layers")]


@pytest.mark.parametrize(("size", "table"), AUTHORS)
def test_names_and_shapes_are_the_authors(size, table):
    rows = [line.split("\t") for line in (GOLDENS / f"{table}.tsv").read_text().splitlines()]
    expected = without_ignored({name: ast.literal_eval(shape) for name, shape, _ in rows})
    assert {dtype for name, _, dtype in rows if name in expected} == {"float32"}
    assert torch_shapes(make_config(size), abstract_clip(size) | abstract_decoders(size)) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_open_clips(name):
    state_dict = open_clip_model(name).state_dict()
    expected = without_ignored({CLIP_PREFIX + key: tuple(x.shape) for key, x in state_dict.items()})
    size, _ = PUBLISHED[name]
    assert torch_shapes(make_config(size), abstract_clip(size)) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_that_no_entry_shows_are_open_clips(name):
    model, (size, _) = open_clip_model(name), PUBLISHED[name]
    backbone, text = BACKBONES[size], TEXT_TOWERS[size]
    blocks = model.transformer.resblocks
    assert {block.attn.num_heads for block in blocks} == {text.num_heads}
    activation = {"quick_gelu": "QuickGELU", "gelu": "GELU"}[text.activation]
    assert {type(block.mlp.gelu).__name__ for block in blocks} == {activation}
    if isinstance(backbone, ConvNextConfig):
        norms = [module for module in model.visual.modules() if isinstance(module, torch.nn.LayerNorm)]
        assert {norm.eps for norm in norms} == {backbone.norm_eps}
    else:
        assert model.visual.attnpool.num_heads == backbone.channels[-1] // backbone.head_dim


@pytest.mark.parametrize(("size", "millions"), [("RN50", 20.76), ("convnext_base_w", 20.27)])
def test_number_of_trained_parameters_is_the_published_one(size, millions):
    leaves = abstract_decoders(size)
    assert all(entry.key.startswith(HEAD_PREFIX) for entry, _ in torch_entries(make_config(size), leaves))
    count = sum(leaf.size for leaf in leaves.values())
    assert round(count / 1e6, 2) == millions
