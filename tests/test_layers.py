"""The layers of docs/architecture.md: what each module may import from the project."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "clipvis_jax"
FOUNDATION = {"errors", "structs", "ops", "version"}
SPLIT = {"compilation", "pretraining", "training"}
"""Packages whose modules are layers themselves, named with a dot; any other package is one layer."""
ALLOWED = {
    **{name: set() for name in ("errors", "ops", "structs", "version")},
    "models": FOUNDATION | {"models"},
    **{f"{package}.__init__": set() for package in SPLIT},
    "training.matching": FOUNDATION,
    "training.losses": FOUNDATION | {"models", "training.matching"},
    "training.path_rules": set(),
    "training.optimizer": {"training.path_rules"},
    "training.sharding": {"errors", "training.path_rules"},
    "training.step": FOUNDATION | {"models", "training.losses", "training.matching", "training.sharding"},
    "torch_names": {"models"},
    "model_sizes": {"errors", "models", "torch_names"},
    "state_dicts": {"errors", "torch_names"},
    "convert": {"errors", "models", "model_sizes", "state_dicts", "torch_names"},
    "files": {"errors"},
    "folder_lock": {"errors", "files"},
    "images": {"errors"},
    "tokenizer": {"errors"},
    "text": FOUNDATION | {"models", "tokenizer", "files"},
    "checkpoints": {"distributed", "errors", "files", "models", "tokenizer"},
    "association": {"errors"},
    "scores": {"errors"},
    "data": {"data", "errors", "files", "folder_lock", "images", "temp_file"},
    "evaluation": {"data", "errors", "evaluation", "files", "masks", "visualize"},
    "masks": {"errors"},
    "results": {"masks", "temp_file"},
    "frame_store": {"masks", "temp_file"},
    "temp_file": {"files"},
    "video": {"errors", "images"},
    "video_writer": {"errors", "files"},
    "visualize": {"errors"},
    "video_state": {
        "association",
        "errors",
        "frame_store",
        "masks",
        "models",
        "results",
        "scores",
        "structs",
        "temp_file",
    },
    "segmenter": FOUNDATION
    | {"association", "masks", "models", "prefetch", "results", "scores", "text", "tokenizer", "video", "video_state"},
    "loading": {"checkpoints", "files", "models", "segmenter"},
    "prefetch": set(),
    "provenance": {"version"},
    "bundled": {"errors"},
    "distributed": {"errors"},
    "dataset_run": {"data", "errors", "files", "results", "segmenter"},
    "prediction_cache": {"association", "errors", "files", "masks", "scores", "structs", "video_state"},
    "ablation": {
        "association",
        "data",
        "dataset_run",
        "evaluation",
        "files",
        "prediction_cache",
        "scores",
        "segmenter",
        "text",
    },
    "pretraining.batch_norm": {"models"},
    "pretraining.contrastive": {"ops"},
    "pretraining.step": FOUNDATION
    | {"models", "pretraining.batch_norm", "pretraining.contrastive", "training.sharding"},
    "pretraining.zero_shot": {"data", "images", "models", "ops"},
    "pretraining.clip_task": FOUNDATION
    | {
        "checkpoints",
        "data",
        "distributed",
        "models",
        "pretraining.contrastive",
        "pretraining.step",
        "pretraining.zero_shot",
        "text",
        "tokenizer",
        "training.host_memory",
        "training.loop",
        "training.matmul_flops",
        "training.sharding",
        "visualize",
    },
    "training.host_memory": set(),
    "training.checkpoints": {"distributed", "errors", "files"},
    "training.log": {"errors", "files"},
    "training.run_folder": {"distributed", "errors", "files", "folder_lock"},
    "training.stop_signal": set(),
    "training.matmul_flops": set(),
    "training.loop": {
        "distributed",
        "errors",
        "prefetch",
        "training.checkpoints",
        "training.log",
        "training.run_folder",
        "training.stop_signal",
    },
    "training.clipvis_task": {
        "checkpoints",
        "data",
        "dataset_run",
        "distributed",
        "errors",
        "evaluation",
        "loading",
        "model_sizes",
        "models",
        "segmenter",
        "structs",
        "training.host_memory",
        "training.loop",
        "training.losses",
        "training.matmul_flops",
        "training.optimizer",
        "training.sharding",
        "training.step",
        "visualize",
    },
    "compilation.hlo_collectives": set(),
    "compilation.check": FOUNDATION
    | {
        "compilation.hlo_collectives",
        "model_sizes",
        "models",
        "training.clipvis_task",
        "training.matmul_flops",
        "training.optimizer",
        "training.sharding",
        "training.step",
    },
    "config": {"errors", "pretraining.clip_task", "training.clipvis_task"},
    "__init__": {"association", "errors", "loading", "results", "scores", "segmenter", "version"},
}
TOP = {"cli", "commands", "outputs", "__main__"}
"""May import everything; nothing imports them."""


def layer_of(parts):
    """Return the layer of a module, given its name below clipvis_jax in parts."""
    return ".".join(parts[: 2 if parts[0] in SPLIT else 1])


def imports_of(path):
    """Return the layers of the project that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            # What is imported may be a module itself: `from clipvis_jax import ops`.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {layer_of(name.split(".")[1:]) for name in names if name.startswith("clipvis_jax.")}
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_module_stays_in_its_layer(path):
    name = layer_of(path.relative_to(PACKAGE).with_suffix("").parts)
    imported = imports_of(path)
    if name in TOP:
        return
    assert imported <= ALLOWED[name], f"{name} may not import {sorted(imported - ALLOWED[name])}"
