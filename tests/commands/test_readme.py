"""The README does what it says: its Python runs on the bundled model, its commands are understood."""

import re
import shlex
from pathlib import Path

import pytest

from clipvis_jax import bundled
from clipvis_jax.cli import parse_command
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.inference.dataset_run import DatasetFrames
from clipvis_jax.media.video_writer import VideoWriter

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frames = [frame for _, frame in DatasetFrames(open_dataset(bundled.CLIP), 0)][:2]
    with VideoWriter(tmp_path / "clip.mp4", *frames[0].shape[:2], 10.0) as writer:
        for frame in frames:
            writer.write(frame)
    shown = []
    names = {"camera": frames, "show": lambda frame, tracks: shown.append(tracks)}
    for language, block in BLOCKS:
        if language == "python":
            exec(block, names)
    assert "pink heart" in capsys.readouterr().out
    assert len(shown) == 2
    assert names["result"].tracks


COMMANDS = [
    line.partition(" #")[0]
    for language, block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if not language and line.startswith("clipvis ")
]


def test_there_are_commands():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command):
    assert callable(parse_command(shlex.split(command)[1:]).run)
