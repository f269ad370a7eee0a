"""``clipvis convert``: weights in every layout, and everything that can be wrong with them."""

import dataclasses
import functools
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from conftest import GOLDENS, tiny_state_dict
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from safetensors.torch import save_file
from tiny import tiny_tokenizer, wordy_state_dict

import clipvis_jax
from clipvis_jax.cli import main
from clipvis_jax.models.clipvis import ClipVisConfig
from clipvis_jax.weights.convert import from_state_dict, to_state_dict
from clipvis_jax.weights.model_folder import load_model
from clipvis_jax.weights.state_dicts import read_state_dict
from clipvis_jax.weights.torch_names import CLIP_PREFIX, HEAD_PREFIX

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save(folder)
    return folder


def tensors(family: str, dtype: torch.dtype = torch.float32) -> Tensors:
    """A tiny model as torch tensors, whole numbers left as they are."""
    arrays = {key: torch.from_numpy(np.array(array)) for key, array in wordy_state_dict(family).items()}
    return {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in arrays.items()}


def clip_alone(family: str) -> Tensors:
    """CLIP as open_clip saves it: without the authors' prefix."""
    return {k.removeprefix(CLIP_PREFIX): x for k, x in tensors(family).items() if k.startswith(CLIP_PREFIX)}


def write(path: Path, content: object) -> Path:
    """Write weights in the format that the suffix says."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def convert(*options: object) -> int:
    return main(["convert", "--text-heads", "4", *map(str, options)])


def assert_same(ours, expected) -> None:
    """Two trees of the same structure and the same bits."""
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype == np.float32, path
        np.testing.assert_array_equal(a, b, err_msg=str(path))


def error_of(capsys: pytest.CaptureFixture[str], folder: Path, *options: object) -> str:
    """Convert what cannot be converted: one line on stderr, code 2, and ``folder`` as it was."""
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert convert("--out", folder / "new" / "model", *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("clipvis: error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    assert sorted(folder.rglob("*")) == before
    return captured.err


# --- what works


LAYOUTS: dict[str, Callable[[Tensors], object]] = {
    "plain.safetensors": lambda x: x,
    "plain.pth": lambda x: x,
    "authors.pth": lambda x: {"model": x, "iteration": 7, "trainer": {"scheduler": {"last_epoch": 7}}},
    "parallel.pt": lambda x: {"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in x.items()}},
    "parameters.bin": lambda x: {k: torch.nn.Parameter(t, requires_grad=t.is_floating_point()) for k, t in x.items()},
}


@functools.cache
def expected_model(family: str):
    return from_state_dict(wordy_state_dict(family), source=family, text_heads=4)


def test_weights_arrive_bit_for_bit(family: str, tmp_path: Path, tokenizer: Path) -> None:
    weights = write(tmp_path / "authors.pth", LAYOUTS["authors.pth"](tensors(family)))
    assert convert("--checkpoint", weights, "--tokenizer", tokenizer, "--out", tmp_path / "model") == 0
    segmenter = clipvis_jax.load(tmp_path / "model")
    config, *expected = expected_model(family)
    assert segmenter.model.config == config
    assert_same(jax.tree.map(np.asarray, (segmenter.clip_vars, segmenter.params)), tuple(expected))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_a_state_dict(layout: str, tmp_path: Path) -> None:
    arrays = read_state_dict(write(tmp_path / layout, LAYOUTS[layout](tensors("rn"))))
    expected = wordy_state_dict("rn")
    assert arrays.keys() == expected.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key, strict=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_half_precision_is_read(suffix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    half = tensors("rn", dtype)
    arrays = read_state_dict(write(tmp_path / f"half{suffix}", half))
    assert arrays.keys() == half.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(array.astype(np.float32), half[key].float().numpy(), err_msg=key)


def test_there_and_back(family: str) -> None:
    state_dict = tiny_state_dict(family)
    ours = to_state_dict(*from_state_dict(state_dict, source=family, text_heads=4))
    left_out = state_dict.keys() - ours.keys()
    assert ours.keys() <= state_dict.keys()
    assert all(key.endswith("num_batches_tracked") or key.startswith("criterion.") for key in left_out)
    for key, array in ours.items():
        np.testing.assert_array_equal(array, state_dict[key], err_msg=key)


@pytest.fixture
def compilation_cache(tmp_path: Path) -> Iterator[None]:
    """Compile what is the same only once."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    reset_cache()  # JAX looks at the setting only once
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    reset_cache()


@pytest.mark.usefixtures("compilation_cache")
def test_clip_alone_gets_decoders_from_the_seed(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Initial values of the default sizes take long to compile.
    sizes, expected_clip, _ = expected_model("rn")
    pixel_decoder = dataclasses.replace(sizes.pixel_decoder, num_layers=1)
    query_decoder = dataclasses.replace(sizes.query_decoder, num_layers=1)
    small = functools.partial(ClipVisConfig, pixel_decoder=pixel_decoder, query_decoder=query_decoder)
    monkeypatch.setattr("clipvis_jax.weights.published_sizes.ClipVisConfig", small)
    clip = write(tmp_path / "clip.safetensors", clip_alone("rn"))
    models = []
    for name, seed in {"a": 5, "b": 5, "c": 6}.items():
        assert convert("--clip", clip, "--tokenizer", tokenizer, "--seed", seed, "--out", tmp_path / name) == 0
        assert f"random values from seed {seed}" in capsys.readouterr().out
        models.append(load_model(tmp_path / name))
        assert_same(models[-1].clip_vars, expected_clip)
        assert models[-1].config.query_decoder == query_decoder
    assert_same(models[0].params, models[1].params)
    with pytest.raises(AssertionError):
        assert_same(models[0].params, models[2].params)


def test_clip_takes_the_place_of_the_checkpoints(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = clip_alone("rn") | {"logit_scale": torch.tensor(3.0)}
    clip = write(tmp_path / "clip.safetensors", other)
    checkpoint = write(tmp_path / "trained.pth", {"model": tensors("rn")})
    out = tmp_path / "model"
    assert convert("--clip", clip, "--checkpoint", checkpoint, "--tokenizer", tokenizer, "--out", out) == 0
    assert "not trained" not in capsys.readouterr().out
    model = load_model(out)
    assert_same(model.params, expected_model("rn")[2])
    assert model.clip_vars["logit_scale"] == 3
    assert {name: model.source[name]["file"] for name in ("clip", "checkpoint")} == {
        "clip": "clip.safetensors",
        "checkpoint": "trained.pth",
    }


def test_safetensors_need_no_torch(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = tensors("rn", torch.bfloat16)
    weights = write(tmp_path / "weights.safetensors", half)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert convert("--checkpoint", weights, "--tokenizer", tokenizer, "--out", tmp_path / "model") == 0
    rounded = {key: x.float().numpy() for key, x in half.items()}
    _, *expected = from_state_dict(rounded, source="rounded", text_heads=4)
    model = load_model(tmp_path / "model")
    assert_same((model.clip_vars, model.params), tuple(expected))


# --- files that cannot be read


class Code:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def script_module(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI's archives are from 2021
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def zip_bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing.pth": (lambda p: p, "No such file"),
    "folder.pth": (folder, "Is a directory"),
    "empty.pth": (lambda p: write_bytes(p, b""), "is empty"),
    "empty.safetensors": (lambda p: write_bytes(p, b""), "is empty"),
    "weights.npz": (lambda p: write_bytes(p, b"x"), "unknown kind of checkpoint; give a .safetensors"),
    "cut.pth": (lambda p: cut(write(p, tensors("convnext"))), "not a whole PyTorch checkpoint; download it again"),
    "cut.safetensors": (lambda p: cut(write(p, tensors("convnext"))), "not a whole safetensors file"),
    "page.pth": (lambda p: write_bytes(p, b"<!DOCTYPE html><html>404</html>"), "not a whole PyTorch checkpoint"),
    "page.safetensors": (lambda p: write_bytes(p, b"<!DOCTYPE html><html>404</html>"), "not a whole safetensors"),
    "zip.pth": (lambda p: write_bytes(p, b"PK\x05\x06" + bytes(18)), "not a whole PyTorch checkpoint"),
    "RN50.pt": (script_module, "open_clip_model.safetensors of timm/resnet50_clip.openai"),
    "list.pth": (lambda p: write(p, [1, 2]), "holds no state dict"),
    "nothing.pth": (lambda p: write(p, {"model": {}}), "holds no state dict"),
    "epoch.pth": (lambda p: write(p, {"epoch": 3}), "the entry 'epoch' is not a named tensor"),
    "number.pth": (lambda p: write(p, {1: torch.ones(1)}), "the entry 1 is not a named tensor"),
    "module.pth": (lambda p: write(p, torch.nn.Linear(2, 2)), "(torch.nn.modules.linear.Linear)"),
    "bomb.pth": (zip_bomb, "but would unpack to 100000000"),
    "repeated.pth": (lambda p: write(p, {"x": torch.zeros(1).expand(10**10)}), "but would unpack to 40000000000"),
    "nothing.safetensors": (lambda p: write(p, {}), "holds no decoders"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_hold_no_weights(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = BAD_FILES[name]
    error = error_of(capsys, tmp_path, "--checkpoint", make(tmp_path / name))
    assert error.startswith(f"clipvis: error: {tmp_path / name}: ")
    assert message in error


@pytest.mark.parametrize("way", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_does_not_run(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "evil.pth"
    content = {"model": tensors("convnext"), "extra": Code(trace)}
    if way == "pickle":
        path.write_bytes(pickle.dumps(Code(trace), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "zip")
    error = error_of(capsys, tmp_path, "--checkpoint", path)
    assert "holds more than tensors (" in error
    assert "refused" in error
    assert not trace.exists()
    # The trap works: a reader that runs code leaves the trace.
    torch.load(path, weights_only=False) if way != "pickle" else pickle.loads(path.read_bytes())
    assert trace.exists()


def test_pickles_without_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write(tmp_path / "weights.pth", clip_alone("rn"))
    monkeypatch.setitem(sys.modules, "torch", None)
    error = error_of(capsys, tmp_path, "--checkpoint", weights)
    assert "pip install 'clipvis-jax[torch]'" in error
    assert "safetensors" in error


# --- weights that do not fit


def replaced(key: str, value: torch.Tensor, state_dict: Tensors) -> Tensors:
    assert key in state_dict
    return state_dict | {key: value}


def without(state_dict: Tensors, *keys: str) -> Tensors:
    assert state_dict.keys() >= set(keys)
    return {key: tensor for key, tensor in state_dict.items() if key not in keys}


QKV = CLIP_PREFIX + "transformer.resblocks.0.attn.in_proj_weight"
MASK_BIAS = HEAD_PREFIX + "pixel_decoder.mask_features.bias"
INPUT_CONV = HEAD_PREFIX + "pixel_decoder.input_proj.0.0.weight"
QUERIES = HEAD_PREFIX + "predictor.query_feat.weight"
STEM = CLIP_PREFIX + "visual.bn1.weight"
VIT = ["visual.class_embedding", "visual.proj", "visual.conv1.weight", "visual.ln_pre.weight"]
BAD_WEIGHTS: dict[str, tuple[Callable[[], Tensors], list[str]]] = {
    "decoders alone": (
        lambda: {k: x for k, x in tensors("rn").items() if k.startswith(HEAD_PREFIX)},
        ["holds no CLIP weights", "as 'clip'"],
    ),
    "other network": (lambda: {"conv.weight": torch.ones(2)}, ["holds no decoders"]),
    "sizes of no decoder": (
        lambda: replaced(INPUT_CONV, torch.ones(65, 512, 1, 1), tensors("rn")),
        [": the decoders have unsupported sizes (pixel_decoder.dim 65: give a multiple of 32 and of num_heads, 8)\n"],
    ),
    "decoders of two widths": (
        lambda: replaced(QUERIES, torch.ones(20, 32), tensors("rn")),
        [": the decoders have unsupported sizes (query_decoder.dim 32: give that of the pixel decoder, 64)\n"],
    ),
    "a scalar that sizes are read from": (
        lambda: replaced(CLIP_PREFIX + "text_projection", torch.ones(()), tensors("rn")),
        [": an entry has an unexpected shape ("],
    ),
    "several at once": (
        lambda: without(tensors("rn"), STEM, MASK_BIAS) | {"sem_seg_head.surprise": torch.ones(1)},
        ["3 entries", f"{STEM} is missing", f"{MASK_BIAS} is missing", "sem_seg_head.surprise is not used"],
    ),
    "what sizes are read from": (
        lambda: without(tensors("rn"), CLIP_PREFIX + "text_projection"),
        ["the entry 'text_projection' is missing"],
    ),
    "shape": (lambda: replaced(MASK_BIAS, torch.ones(3), tensors("rn")), [f"{MASK_BIAS} has shape (3,), not (64,)"]),
    "shape of a stack": (lambda: replaced(QKV, torch.ones(96, 31), tensors("rn")), [f"{QKV} has shape (96, 31)"]),
    "stack of no thirds": (lambda: replaced(QKV, torch.ones(95, 32), tensors("rn")), [f"{QKV} has shape (95, 32)"]),
    "scalar for a stack": (lambda: replaced(QKV, torch.ones(()), tensors("rn")), [f"{QKV} has shape ()"]),
    "not a number": (
        lambda: replaced(MASK_BIAS, torch.full((64,), torch.nan), tensors("rn")),
        [f"{MASK_BIAS} has values that are not finite"],
    ),
    "infinite": (
        lambda: replaced(QKV, torch.full((96, 32), torch.inf), tensors("rn")),
        [f"{QKV} has values that are not finite"],
    ),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_do_not_fit(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, messages = BAD_WEIGHTS[case]
    weights = write(tmp_path / "weights.safetensors", make())
    error = error_of(capsys, tmp_path, "--checkpoint", weights)
    assert error.startswith(f"clipvis: error: {weights}: ")
    for message in messages:
        assert error.count(message) == 1


@pytest.mark.parametrize("names", [VIT, ["conv.weight"]])
def test_other_image_encoders(names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write(tmp_path / "clip.safetensors", {name: torch.ones(2, 2) for name in names})
    assert error_of(capsys, tmp_path, "--clip", clip) == (
        f"clipvis: error: {clip}: the image encoder is neither a CLIP ResNet nor a CLIP ConvNeXt (supported: RN50, "
        "RN101, RN50x4, RN50x16, RN50x64, convnext_base_w, convnext_large_d, convnext_xxlarge); a ViT has no feature "
        "pyramid for CLIP-VIS\n"
    )


@pytest.mark.parametrize("with_clip", [False, True])
def test_clip_alone_is_no_checkpoint(with_clip: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write(tmp_path / "alone.safetensors", clip_alone("rn"))
    options = ["--clip", write(tmp_path / "clip.safetensors", clip_alone("rn"))] if with_clip else []
    assert error_of(capsys, tmp_path, "--checkpoint", checkpoint, *options) == (
        f"clipvis: error: {checkpoint}: holds no decoders (no key starts with 'sem_seg_head.'); "
        "give CLIP alone as 'clip'\n"
    )


def test_decoders_of_another_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write(tmp_path / "rn.pth", tensors("rn"))
    clip = write(tmp_path / "convnext.safetensors", clip_alone("convnext"))
    error = error_of(capsys, tmp_path, "--checkpoint", checkpoint, "--clip", clip)
    assert error.startswith(f"clipvis: error: {checkpoint} + {clip}: ")
    assert "input_proj.0.0.weight has shape (64, 512, 1, 1), not (64, 128, 1, 1)" in error


def test_trained_decoders_are_no_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write(tmp_path / "rn.pth", tensors("rn"))
    assert f"{checkpoint}: holds trained decoders too; give it as 'checkpoint'" in error_of(
        capsys, tmp_path, "--clip", checkpoint
    )


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --checkpoint"),
        (["--seed", "-1"], "--seed -1: must be between 0 and"),
        (["--seed", str(2**70)], f"--seed {2**70}: must be"),
        *(
            (["--text-heads", str(n)], f" error: --text-heads {n}: must divide the text encoder's width, which is 32\n")
            for n in (0, -4, 5)
        ),
        (["--tokenizer", "no/such/folder"], "tokenizer 'no/such/folder': neither a folder nor a file"),
        (["--tokenizer", "openai/clip-vit-base-patch32"], "not to be had from the Hugging Face hub; pass a folder"),
    ],
)
def test_bad_options(
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    if options:
        options = ["--checkpoint", str(write(tmp_path / "weights.safetensors", tensors("rn"))), *options]
    assert message in error_of(capsys, tmp_path, *options)


def test_the_target_is_looked_at_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not after minutes of work."""
    (tmp_path / "new").write_text("mine")
    error = error_of(capsys, tmp_path, "--checkpoint", tmp_path / "missing.pth")
    assert error == (
        f"clipvis: error: {tmp_path / 'new' / 'model'}: cannot be written (Not a directory); "
        "a part of the path is a file; choose another path\n"
    )


def test_an_old_model_is_replaced_only_on_demand(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", write(tmp_path / "weights.safetensors", tensors("rn")), "--tokenizer", tokenizer]
    model = tmp_path / "new" / "model"
    assert convert(*options, "--out", model) == 0
    assert f"{model}: exists already; choose another folder or set overwrite" in error_of(capsys, tmp_path, *options)
    assert convert(*options, "--out", model, "--activation", "gelu", "--overwrite") == 0
    assert load_model(model).config.text.activation == "gelu"


def test_tokenizer_of_another_text_encoder(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = GOLDENS / "tiny_rn.safetensors"  # 512 tokens
    error = error_of(capsys, tmp_path, "--checkpoint", golden, "--tokenizer", tokenizer)
    assert "has 518 entries, but the text encoder 512" in error
    assert "give the tokenizer that the model" in error
