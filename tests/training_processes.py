"""Trainings of a tiny model in processes of their own, as ``train.py`` starts them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np

from clipvis_jax.loop.log import read_log
from clipvis_jax.weights.model_folder import load_model

TRAIN = Path(__file__).parents[1] / "train.py"


def write_config(path, clip, annotations, **changes):
    """Write a configuration with the sizes of a model folder."""
    config = load_model(clip).config
    settings = {
        "backbone": None,
        "pixel_decoder": config.pixel_decoder,
        "query_decoder": config.query_decoder,
        "dataset": str(annotations),
    } | changes
    path.write_text(
        textwrap.dedent(
            """
            from clipvis_jax.data.transforms import LargeScaleJitter
            from clipvis_jax.training.task import *
            from clipvis_jax.training.losses import LossConfig
            config = ClipVisExperiment(
                {settings},
                data=PipelineConfig(batch_size=8, image_size=(64, 64), max_instances=4, num_workers=0,
                                    augmentation=LargeScaleJitter(min_scale=0.8), repeat_threshold=0.0),
                step=TrainingConfig(losses=LossConfig(num_points=64)),
                optimizer=OptimizerConfig(num_steps=6, drop_steps=(4,)),
                evaluation=EvaluationConfig(dataset={dataset!r}, inference=InferenceConfig(size=64)),
                loop=LoopConfig(log_every=1, checkpoint_every=3),
            )
            """
        ).format(settings=", ".join(f"{key}={value!r}" for key, value in settings.items()), dataset=str(annotations))
    )
    return path


def start(cache, config, *options, devices=1):
    # Most of the time goes into compiling: machine code as it comes, not optimised, saves a third of it.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "CLIPVIS_CACHE": str(cache)}
    # XLA explains at length how it divides arrays.
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "2", "NPROC": "32"}  # for NPROC see conftest.py
    command = [sys.executable, TRAIN, config, *options]
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(*processes, expected_code=0):
    """Wait for processes that work together; returns what the first one printed, and its errors."""
    return finish_all(*processes, expected_code=expected_code)[0]


def finish_all(*processes, expected_code=0):
    """Wait for processes that work together; returns what each printed, and its errors."""
    try:
        said = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has ended
    for process, (_, error) in zip(processes, said, strict=True):
        assert process.returncode == expected_code, error
    return said


def losses_of(workdir):
    return np.array([record["loss/total"] for record in read_log(workdir) if "loss/total" in record])


def pictures_of(workdir):
    return sorted(path.name for path in (workdir / "pictures").iterdir())


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
