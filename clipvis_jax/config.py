"""Configurations of experiments: Python files that define ``config``."""

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

from clipvis_jax.errors import InputError, first_line
from clipvis_jax.pretraining.task import ClipExperiment
from clipvis_jax.training.task import ClipVisExperiment

Experiment = ClipVisExperiment | ClipExperiment
"""All kinds of experiments that can be trained."""


_FOLDER = Path(__file__).parent / "configs"

CONFIGS = tuple(sorted(file.stem for file in _FOLDER.glob("*.py")))
"""The names of those that come with the package."""


def load_config(path: Path) -> Experiment:
    """Run a configuration file and return its ``config``.

    Args:
        path: A file. Where there is none, ``lvis_r50`` and ``configs/lvis_r50.py`` mean the package's.

    Raises:
        InputError: There is no such file, it fails, or it defines no experiment.
    """
    file = path
    if not path.is_file() and str(path.parent) in (".", "configs") and path.stem in CONFIGS:
        file = _FOLDER / f"{path.stem}.py"
    if not file.is_file():
        raise InputError(f"{path}: no such file; give your own configuration, or one of {', '.join(CONFIGS)}")
    try:
        config = runpy.run_path(str(file)).get("config")
    except Exception as error:  # it may do anything
        raise InputError(f"{path}: fails ({first_line(error)})") from error
    if not isinstance(config, Experiment):
        raise InputError(f"{path}: does not define 'config' as an experiment; see configs/lvis_r50.py for an example")
    return config


def config_to_json(experiment: Experiment) -> dict[str, Any]:
    """Return all settings; data sets and functions by their names."""
    if isinstance(experiment, ClipVisExperiment):
        experiment = experiment.with_names()
    return json.loads(json.dumps(dataclasses.asdict(experiment), default=lambda x: getattr(x, "__qualname__", str(x))))
