"""The layers of docs/architecture.md: what each module may import from the project."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "clipvis_jax"
FOUNDATION = {"errors", "structs", "ops", "version"}
ALLOWED = {
    **{name: set() for name in ("errors", "ops", "structs", "version")},
    "models": FOUNDATION | {"models"},
    "matching": FOUNDATION,
    "losses": FOUNDATION | {"matching", "models"},
    "path_rules": set(),
    "optimizer": {"path_rules"},
    "sharding": {"errors", "path_rules"},
    "training": FOUNDATION | {"losses", "models", "sharding"},
    "torch_names": {"models"},
    "model_sizes": {"errors", "models", "torch_names"},
    "state_dicts": {"errors", "torch_names"},
    "convert": {"errors", "models", "model_sizes", "state_dicts", "torch_names"},
    "files": {"errors"},
    "images": {"errors"},
    "tokenizer": {"errors"},
    "text": FOUNDATION | {"models", "tokenizer", "files"},
    "checkpoints": {"distributed", "errors", "files", "models", "tokenizer"},
    "association": {"errors"},
    "scores": {"errors"},
    "data": {"data", "errors", "files", "images", "temp_file"},
    "evaluation": {"data", "errors", "evaluation", "files", "images", "masks", "visualize"},
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
    "loading": {"checkpoints", "models", "segmenter"},
    "prefetch": set(),
    "host_memory": set(),
    "provenance": {"version"},
    "distributed": {"errors"},
    "dataset_run": {"data", "errors", "files", "images", "results", "segmenter"},
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
    "batch_norm": {"models"},
    "contrastive": {"ops"},
    "clip_step": FOUNDATION | {"batch_norm", "contrastive", "models", "sharding"},
    "zero_shot": {"data", "images", "models", "ops"},
    "clip_training": FOUNDATION
    | {
        "checkpoints",
        "clip_step",
        "contrastive",
        "data",
        "models",
        "sharding",
        "text",
        "tokenizer",
        "training_loop",
        "visualize",
        "zero_shot",
    },
    "training_checkpoints": {"errors", "files"},
    "training_log": {"files"},
    "training_loop": {"distributed", "errors", "files", "prefetch", "training_checkpoints", "training_log"},
    "clipvis_training": {
        "checkpoints",
        "data",
        "dataset_run",
        "distributed",
        "errors",
        "evaluation",
        "host_memory",
        "loading",
        "losses",
        "model_sizes",
        "models",
        "optimizer",
        "segmenter",
        "sharding",
        "structs",
        "training",
        "training_loop",
        "visualize",
    },
    "hlo_collectives": set(),
    "matmul_flops": set(),
    "compile_check": FOUNDATION
    | {
        "clipvis_training",
        "hlo_collectives",
        "matmul_flops",
        "model_sizes",
        "models",
        "optimizer",
        "sharding",
        "training",
    },
    "config": {"clip_training", "clipvis_training", "errors"},
    "__init__": {"association", "errors", "loading", "results", "scores", "segmenter", "version"},
}
TOP = {"cli", "commands", "outputs", "__main__"}
"""May import everything; nothing imports them."""


def imports_of(path):
    """Return the project modules that a file imports, by their first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "clipvis_jax":
            names = [node.module] if "." in node.module else [f"clipvis_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("clipvis_jax.")]
        found |= {name.split(".")[1] for name in names}
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_module_stays_in_its_layer(path):
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = imports_of(path)
    if name in TOP:
        return
    assert imported <= ALLOWED[name], f"{name} may not import {sorted(imported - ALLOWED[name])}"
