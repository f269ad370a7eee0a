"""``clipvis prepare``."""

import json
import subprocess
import sys

import pytest
from annotation_files import write_dataset, youtube_vis

from clipvis_jax.cli import main
from clipvis_jax.data.catalog import open_dataset


@pytest.fixture
def root(tmp_path):
    path, images = write_dataset(tmp_path / "raw", youtube_vis())
    folder = tmp_path / "data" / "lvvis" / "val"
    folder.mkdir(parents=True)
    path.rename(folder / "val_instances.json")
    images.rename(folder / "JPEGImages")
    return tmp_path / "data"


def test_known_data_set(root, tmp_path, capsys):
    command = ["prepare", "lvvis_val", "--source", str(root), "--out", str(tmp_path / "out")]
    assert main([*command, "--verify"]) == 0
    output = capsys.readouterr()
    folder = tmp_path / "out" / "lvvis_val" / "clipvis_videos" / "1.0.0"
    assert output.out == f"lvvis_val: 2 videos, 2 classes\nwrote {folder}\n"
    assert "preparing lvvis_val: 100%" in output.err
    assert "verifying: 100%" in output.err
    assert list(open_dataset(tmp_path / "out")) == list(open_dataset("lvvis_val", root))
    assert main(command) == 0
    assert "preparing" not in capsys.readouterr().err
    assert main([*command, "--level", "frames"]) == 0
    assert "lvvis_val: 4 frames, 2 classes" in capsys.readouterr().out


def test_own_data_set(root, tmp_path, capsys):
    folder = root / "lvvis" / "val"
    options = ["--source", str(folder / "JPEGImages"), "--out", str(tmp_path / "out")]
    assert main(["prepare", str(folder / "val_instances.json"), *options]) == 0
    assert "val_instances: 2 videos, 2 classes" in capsys.readouterr().out


SLOW = """
import sys
from clipvis_jax.cli import main
from clipvis_jax.data.raw import RawDataset
read_frame = RawDataset.read_frame
def slow(*given):
    print("reading", flush=True)
    sys.stdin.readline()
    return read_frame(*given)
RawDataset.read_frame = slow
sys.exit(main())
"""


def test_a_second_preparation_is_refused_however_long_the_first_takes(root, tmp_path, capsys):
    command = ["prepare", "lvvis_val", "--source", str(root), "--out", str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", SLOW, *command], **pipes) as first:
        try:
            assert first.stdout.readline() == "reading\n"
            assert main(command) == 2
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert "another preparation is at work there; wait for it, or choose another folder" in error
            first.communicate("\n" * 100, timeout=100)
            assert first.returncode == 0
        finally:
            first.kill()
    assert main([*command, "--verify"]) == 0


def test_bad_input(root, tmp_path, capsys):
    def fails(*arguments):
        assert main(["prepare", *arguments, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("clipvis: error: ")
        return error

    assert "lvvis_vall: is neither a known data set" in fails("lvvis_vall", "--source", str(root))
    assert "nowhere: is not a folder" in fails("lvvis_val", "--source", str(tmp_path / "nowhere"))
    assert "val2017" in fails("coco_val", "--source", str(root))
    (root / "lvvis" / "val" / "JPEGImages" / "b" / "1.jpg").unlink()
    assert "b/1.jpg: is missing (frame 1 of video 7)" in fails("lvvis_val", "--source", str(root))
    path = root / "lvvis" / "val" / "val_instances.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    error = fails("lvvis_val", "--source", str(root), "--level", "frames")
    assert "lvvis_val: has no annotated frames" in error


def test_help(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["prepare", "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for word in ("lvis_train_norare", "gs://", "goes on where it stopped", "--level", "--verify"):
        assert word in text
