"""The way of the bundled model in miniature, as a user types it: CLIP, decoders under it, scores, ablations."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import tiny_model_folder

import clipvis_jax
from clipvis_jax.cli import main
from clipvis_jax.commands.shapes import Shapes
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.data.shapes.classes import PARTITIONS
from clipvis_jax.loop.log import read_log
from clipvis_jax.weights.model_folder import load_model

CONFIGS = Path(__file__).parents[2] / "configs"

# Sizes that compile and run quickly. CLIP sees single objects in the first half of its steps, then whole images.
DECODERS = """
    --pixel-decoder.dim 32 --pixel-decoder.mask-dim 32 --pixel-decoder.num-layers 1 --pixel-decoder.num-heads 2
    --pixel-decoder.ffn-dim 32 --query-decoder.num-layers 1 --query-decoder.dim 32 --query-decoder.mask-dim 32
    --query-decoder.num-heads 2 --query-decoder.ffn-dim 32 --query-decoder.num-queries
"""
CLIP_SIZES = """
    --backbone.depths 1 1 1 1 --backbone.width 4 --backbone.embed-dim 16 --backbone.pool-grid 2 --backbone.head-dim 16
    --text.width 16 --text.num-heads 2 --text.num-layers 1 --text.embed-dim 16
    --data.size 64 --data.batch-size 8 --data.num-images 8 --data.num-workers 0
    --loop.log-every 1 --loop.evaluate-every 0
"""
CLIP = f"""
    {CLIP_SIZES} --optimizer.learning-rate 5e-3 --optimizer.num-steps 16 --optimizer.warmup-steps 2
    --stages.0.size 32 --stages.0.share 0.25 --stages.1.size 32 --stages.1.share 0.25 --stages.2.size 64
    --stages.2.share 0.5
"""
MORE_CLIP = f"""
    {CLIP_SIZES} --seed 1 --optimizer.num-steps 4 --optimizer.warmup-steps 1 --optimizer.decay-share 0.5
    --stages.0.size 64
"""
CLIPVIS = """
    --data.batch-size 8 --data.image-size 64 64 --data.num-workers 0 --step.losses.num-points 64
    --optimizer.learning-rate 1e-2 --optimizer.num-steps 16 --optimizer.drop-steps 14 15 --optimizer.warmup-steps 2
    --loop.log-every 1 --loop.evaluate-every 0
"""
WHOLE_IMAGES_FROM = 8


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("CLIPVIS_CACHE", str(cache))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Programs compiled by the processes of these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The annotation file of eight images of base classes."""
    out = tmp_path_factory.mktemp("images")
    Shapes(out, split="train", count=8, size=64, frames=1).run()
    return out / "annotations.json"


def clipvis(cache, *arguments):
    """Run a command in a process of its own."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CLIPVIS_CACHE": str(cache), "TF_CPP_MIN_LOG_LEVEL": "2"}
    # These programs run for a moment: to compile them well takes longer than it saves.
    environment |= {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "clipvis_jax.cli", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train_all(cache, images, folder):
    """Train CLIP in two parts, decoders under its first state and once more, and then under its last."""
    train_both(cache, images, folder)
    more_clip = train(cache, folder, "clip_more", MORE_CLIP, init_from=folder / "clip" / "model")
    decoders = folder / "clipvis" / "model"
    decoders = train(cache, folder, "finetune", f"{CLIPVIS} {DECODERS} 10", init_from=decoders, dataset=images)
    train(cache, folder, "settle", f"{CLIPVIS} {DECODERS} 10", clip=more_clip, init_from=decoders, dataset=images)
    return folder


def train_both(cache, images, folder):
    """Train CLIP, and decoders under it."""
    clip = train(cache, folder, "clip", f"{CLIP} {DECODERS} 8")
    train(cache, folder, "clipvis", f"{CLIPVIS} {DECODERS} 8", clip=clip, dataset=images)


def train(cache, folder, name, options, **begins):
    """Train what a configuration of the package says, in a process of its own; returns the model folder."""
    begins = [str(word) for key, place in begins.items() for word in (f"--{key.replace('_', '-')}", place)]
    arguments = ["--workdir", folder / name, *begins, *options.split()]
    clipvis(cache, "train", CONFIGS / f"shapes_{name}.py", *arguments)
    return folder / name / "model"


@pytest.fixture(scope="module")
def trained(cache, images, tmp_path_factory):
    return train_all(cache, images, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def model(trained):
    return trained / "settle" / "model"


def losses_of(workdir):
    return np.array([record["loss/total"] for record in read_log(workdir)])


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_losses_go_down(trained):
    clip = losses_of(trained / "clip")
    assert len(clip) == 16
    for stage in (clip[:WHOLE_IMAGES_FROM], clip[WHOLE_IMAGES_FROM:]):
        assert stage[-1] < 0.8 * stage[0]
    decoders = losses_of(trained / "clipvis")
    assert len(decoders) == 16
    assert np.mean(decoders[-4:]) < 0.8 * np.mean(decoders[:4])
    assert losses_of(trained / "finetune")[0] < 0.8 * decoders[0]
    assert losses_of(trained / "settle")[0] < 0.8 * decoders[0]


@pytest.mark.slow
def test_decoders_learn_under_a_frozen_clip(trained, model):
    """The model folder holds the CLIP that was pretrained, rounded to what it is stored in, and says whence it came."""
    clip, whole = load_model(trained / "clip_more" / "model"), load_model(model)
    stored = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), clip.clip_vars)
    assert_same_bits(whole.clip_vars, stored)
    assert_same_bits(whole.params, jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), whole.params))
    assert whole.tokenizer.fingerprint == clip.tokenizer.fingerprint

    def made_by(source):
        begins = {name: made_by(source[name]) for name in ("clip", "init_from") if name in source}
        return {source["config_file"]: begins}

    first_clip = {"shapes_clip.py": {}}
    decoders = {"shapes_finetune.py": {"init_from": {"shapes_clipvis.py": {"clip": first_clip}}}}
    last_clip = {"shapes_clip_more.py": {"init_from": first_clip}}
    assert made_by(whole.source) == {"shapes_settle.py": {"clip": last_clip, "init_from": decoders}}


@pytest.mark.slow
def test_clip_learns_on(trained):
    before, after = (
        load_model(trained / name / "model").clip_vars["trunk"]["stem_conv1"]["kernel"]
        for name in ("clip", "clip_more")
    )
    assert np.all(before != after)
    # It did not begin anew: with its other seed the kernels would be no nearer than these are to zero.
    assert np.linalg.norm(after - before) < 0.5 * np.linalg.norm(before)


@pytest.mark.slow
def test_the_same_commands_give_the_same_bits(trained, cache, images, tmp_path):
    train_both(cache, images, tmp_path)
    for name in ("clip", "clipvis"):
        np.testing.assert_array_equal(losses_of(tmp_path / name), losses_of(trained / name))
        one, other = (load_model(folder / name / "model") for folder in (trained, tmp_path))
        assert_same_bits((one.clip_vars, one.params), (other.clip_vars, other.params))


@pytest.mark.slow
def test_scores_of_all_parts_of_the_classes(cache, model, tmp_path):
    out = clipvis(
        cache, "eval", "--model", model, "--dataset", "shapes_val", "--limit", 2, "--size", 64, "--out", tmp_path,
        "--no-report",
    )  # fmt: skip
    assert "shapes_val, 2 of 200 videos, shapes" in out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["dataset"]["videos"] == 2
    assert metrics["results"]["count"] == len(json.loads((tmp_path / "results.json").read_text())) == 100
    scores = metrics["metrics"]["shapes"]
    assert 0 <= scores["stats"]["AP"] <= 1
    assert scores["groups"].keys() == {"base", "novel", "unseen"}
    dataset = open_dataset("shapes_val")
    part_of = {category.id: category.partition for category in dataset.categories}
    seen = {part_of[instance.category_id] for index in range(2) for instance in dataset[index].instances}
    for name, group in scores["groups"].items():
        assert (group["AP"] is not None) == (PARTITIONS[name] in seen), name
    assert len(metrics["model"]["weights_sha256"]) == 64


@pytest.mark.slow
def test_ablations(cache, model, tmp_path):
    clipvis(
        cache, "ablate", "--model", model, "--dataset", "shapes_val", "--limit", 1, "--size", 64, "--out", tmp_path,
        "--k", 1, 2, "--t", 3,
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "ablation.csv").read_text().splitlines()))
    assert [row["setting"] for row in rows if row["table"] in ("K", "T")] == ["1", "2", "3"]
    assert {"AP", "AP base", "AP novel", "AP unseen"} <= rows[0].keys()
    # What says the same in several tables has the same scores there.
    method = [row for row in rows if row["setting"] in ("+ mask IoU (the method)", "both", "top-K of the history")]
    assert len(method) == 3
    assert len({tuple(row.values())[2:] for row in method}) == 1
    assert (tmp_path / "K.svg").stat().st_size > 0


@pytest.mark.slow
def test_words_that_the_clip_never_read_are_named(model):
    """They are known from the folder alone, which has the tokenizer of the pretraining."""
    segmenter = clipvis_jax.load(model)
    with pytest.warns(UserWarning, match=r"not trained with.*: 'zebra'$"):
        segmenter.encode_classes(["striped teal star", "striped zebra"])
    segmenter.encode_classes(["striped teal star"])  # no warning, which would be an error


# --- bad input


def error_of(capsys, *arguments):
    """Run a command on bad input; returns its one line."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("clipvis: error: ")


TRAINING_DATA = (
    "data set 'shapes_train': is for training; evaluate on one of shapes_val, shapes_test, shapes_fast, "
    "shapes_occlusion"
)


@pytest.mark.parametrize("command", ["eval", "ablate"])
def test_nothing_is_evaluated_on_training_data(command, tmp_path, capsys):
    out = tmp_path / "out"
    error = error_of(capsys, command, "--dataset", "shapes_train", "--model", tmp_path / "model", "--out", out)
    assert error == TRAINING_DATA
    assert not out.exists()


def test_nor_on_training_videos_that_were_written_out(tmp_path, capsys):
    for split in ("train", "val"):
        main(["shapes", "--split", split, "--count", "1", "--size", "64", "--out", str(tmp_path / split)])
    results = tmp_path / "results.json"
    results.write_text("[]")
    options = ["--metrics-only", results, "--no-report", "--out", tmp_path / "out", "--dataset"]
    error = error_of(capsys, "eval", *options, tmp_path / "train" / "annotations.json")
    assert error == TRAINING_DATA
    assert not (tmp_path / "out").exists()
    assert main([str(argument) for argument in ("eval", *options, tmp_path / "val" / "annotations.json")]) == 0
    assert "shapes_val, 1 of 1 videos, shapes" in capsys.readouterr().out  # as the drawn data set, by part
    # The file itself says what it is, wherever it lies and whatever it is called.
    for split, code in (("train", 2), ("val", 0)):
        moved = (tmp_path / split / "annotations.json").rename(tmp_path / split / "mine.json")
        assert main([str(argument) for argument in ("eval", *options, moved)]) == code
    content = json.loads(moved.read_text())
    moved.write_text(json.dumps(content | {"info": content["info"] | {"split": "mine"}}))
    assert "names no split" in error_of(capsys, "eval", *options, moved)
    info = content["info"] | {"description": "Shapes world, version 1"}
    moved.write_text(json.dumps(content | {"info": info}))
    assert "another version of the Shapes world" in error_of(capsys, "eval", *options, moved)


@pytest.mark.parametrize(
    ("option", "dataset", "message"),
    [
        ("--evaluation.dataset", "shapes_train", TRAINING_DATA),
        ("--dataset", "shapes_test", "data set 'shapes_test': is for evaluation; train on shapes_train"),
    ],
)
def test_splits_keep_their_purpose_in_training(option, dataset, message, tmp_path, capsys):
    model = tiny_model_folder(tmp_path / "tiny", "rn")
    out = tmp_path / "run"
    command = ["train", CONFIGS / "shapes_clipvis.py", "--clip", model, "--workdir", out, option, dataset]
    assert error_of(capsys, *command).startswith(message)
    assert not out.exists()


@pytest.mark.parametrize(("first", "count"), [(1_000_000, 1), (999_999, 2), (0, 1_000_001), (-1, 1)])
def test_videos_beyond_a_split_are_not_written(first, count, tmp_path, capsys):
    """The seeds beside those of 'val' are of what CLIP is trained on, or of other splits."""
    out = tmp_path / "out"
    error = error_of(capsys, "shapes", "--split", "val", "--first", first, "--count", count, "--out", out)
    assert error.startswith(f"Shapes videos {first} to {first + count - 1}: split 'val' has numbers 0 to 999999")
    assert not out.exists()


@pytest.mark.parametrize("command", ["shapes", "train", "eval", "ablate"])
def test_folders_that_cannot_be_written(command, tmp_path, capsys):
    """Not even root can make a folder in /proc."""
    arguments = {
        "shapes": ["--count", "1", "--out"],
        "train": [CONFIGS / "shapes_clip.py", "--workdir"],
        "eval": ["--dataset", "shapes_val", "--metrics-only", tmp_path / "results.json", "--out"],
        "ablate": ["--dataset", "shapes_val", "--model", tmp_path / "model", "--out"],
    }[command]
    if command == "ablate":  # which opens the model first
        tiny_model_folder(tmp_path / "model", "rn")
    error = error_of(capsys, command, *arguments, "/proc/out")
    assert error.startswith("/proc/out: cannot be written (")
    assert error.endswith(("create its folder first", "choose a folder that you may write to"))
