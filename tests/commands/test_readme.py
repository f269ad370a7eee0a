"""README and docs do what they say: their Python runs, the README's on the bundled model; commands are understood."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from clipvis_jax import bundled
from clipvis_jax.cli import parse_command
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.inference.dataset_run import DatasetFrames
from clipvis_jax.media.video_writer import VideoWriter

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks_of(text):
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


BLOCKS = blocks_of(README)


@pytest.mark.slow
def test_the_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frames = [frame for _, frame in DatasetFrames(open_dataset(bundled.CLIP), 0)][:2]
    with VideoWriter(tmp_path / "clip.mp4", *frames[0].shape[:2], 10.0) as writer:
        for frame in frames:
            writer.write(frame)
    shown = []
    names = {
        "camera": frames,
        "show": lambda frame, tracks: shown.append(tracks),
        "embeddings_of_frames": [np.eye(3), np.eye(3)[[2, 0, 1]]],
    }
    for language, block in BLOCKS:
        if language == "python":
            exec(block, names)
    assert "pink heart" in capsys.readouterr().out
    assert len(shown) == 2
    assert names["result"].tracks
    assert names["order"].tolist() == [1, 2, 0]


SNIPPETS = {
    f"{page.name} {number}": block
    for page in sorted((ROOT / "docs").glob("*.md"))
    for number, block in enumerate(
        block for language, block in blocks_of(page.read_text("utf-8")) if language == "python"
    )
}
ELSEWHERE = {
    "datasets.md 0": "needs the files of LV-VIS",
    "datasets.md 1": "needs a prepared LV-VIS",
    "own_dataset.md 0": "runs in tests/training/test_own_dataset.py",
}


def test_snippets_that_run_elsewhere_are_there():
    assert set(ELSEWHERE) < set(SNIPPETS)


@pytest.mark.parametrize("name", SNIPPETS)
def test_the_python_of_the_docs_runs(name):
    lines = SNIPPETS[name].splitlines()
    if name in ELSEWHERE:
        lines = [line for line in lines if line.startswith(("import ", "from ")) and not line.endswith("(")]
    exec("\n".join(lines), {})


COMMANDS = [
    line.partition(" #")[0]
    for language, block in BLOCKS + blocks_of((ROOT / "docs" / "recipes.md").read_text("utf-8"))
    for line in block.replace("\\\n", " ").splitlines()
    if not language and line.startswith("clipvis ")
]


def test_there_are_commands():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command):
    assert callable(parse_command(shlex.split(command)[1:]).run)
