"""Prepared data sets: the same records, image files and metrics as the published files give; damage is noticed."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest
import tensorflow_datasets as tfds
from annotation_files import FILES, write_dataset, youtube_vis
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from clipvis_jax import InputError
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.data.prepared import open_prepared, prepare, writing
from clipvis_jax.data.prepared.record_text import video_from_text, video_to_text
from clipvis_jax.data.raw import RawDataset
from clipvis_jax.evaluation import PROTOCOLS, evaluate, ground_truth_from, parse_results


def raw_dataset(folder, name="youtube_vis"):
    return RawDataset(*write_dataset(folder, FILES[name]()), name=name)


def assert_same(prepared, raw):
    assert list(prepared) == list(raw)
    for index, video in enumerate(raw):
        for frame in range(video.length):
            assert prepared.read_frame(index, frame) == raw.read_frame(index, frame)
    for name in ("name", "categories", "digest", "has_annotations", "info"):
        assert getattr(prepared, name) == getattr(raw, name)
    assert prepared.video_sizes() == raw.video_sizes()


@pytest.mark.parametrize("name", FILES)
def test_videos_are_the_same(tmp_path, name):
    raw = raw_dataset(tmp_path, name)
    prepared = open_prepared(prepare(raw, tmp_path / "out", shard_bytes=1))
    assert len(prepared) == 2
    assert_same(prepared, raw)
    assert_same(pickle.loads(pickle.dumps(prepared)), raw)
    prepared.verify()
    assert prepared[-1] == raw[1]
    with pytest.raises(IndexError):
        prepared[2]


@pytest.mark.parametrize("name", FILES)
def test_texts_lose_nothing(tmp_path, name):
    for video in raw_dataset(tmp_path, name):
        text = video_to_text(video)
        assert video_from_text(text) == video
        assert video_from_text(text.encode()) == video
        assert hash(video_from_text(text)) == hash(video)  # tuples all the way down


@pytest.mark.parametrize("name", FILES)
def test_frames_are_the_annotated_ones(tmp_path, name):
    raw = raw_dataset(tmp_path, name)
    prepared = open_prepared(prepare(raw, tmp_path / "out", level="frames", shard_bytes=1))
    expected = [
        (video, frame, row)
        for row, video in enumerate(raw)
        for frame in range(video.length)
        if any(instance.masks[frame] for instance in video.instances)
    ]
    assert len(prepared) == len(expected) > 0
    assert [record.id for record in prepared] == list(range(1, len(expected) + 1))
    assert prepared.video_sizes() == [(6, 8, 1)] * len(expected)
    for index, (video, frame, row) in enumerate(expected):
        assert prepared.read_frame(index, 0) == raw.read_frame(row, frame)
        record = prepared[index]
        assert record.file_names == (video.file_names[frame],)
        assert record.neg_category_ids == video.neg_category_ids
        instances = [instance for instance in video.instances if instance.masks[frame]]
        assert [i.id for i in record.instances] == [i.id for i in instances]
        assert [i.is_crowd for i in record.instances] == [i.is_crowd for i in instances]
        assert [i.masks for i in record.instances] == [(i.masks[frame],) for i in instances]
        assert [i.boxes for i in record.instances] == [i.boxes and (i.boxes[frame],) for i in instances]
        assert [i.areas for i in record.instances] == [i.areas and (i.areas[frame],) for i in instances]


@pytest.mark.parametrize("protocol", ["ytvis", "lvvis"])
def test_metrics_are_the_same(tmp_path, protocol):
    raw = raw_dataset(tmp_path)
    prepared = open_dataset(str(prepare(raw, tmp_path / "out")))
    masks = [{"size": [6, 8], "counts": raw[0].instances[0].masks[1]}] * 3
    results = [
        {"video_id": 7, "category_id": 30, "score": 0.9, "segmentations": masks},
        {"video_id": 2, "category_id": 4, "score": 0.8, "segmentations": masks[:2]},
    ]
    metrics = []
    for dataset in (raw, prepared):
        truth = ground_truth_from(dataset)
        metrics.append(evaluate(truth, parse_results(results, truth), PROTOCOLS[protocol]))
    assert metrics[0].stats == metrics[1].stats
    assert metrics[0].per_category == metrics[1].per_category
    assert metrics[0].stats["AP"] > 0


def test_any_program_can_read_the_files(tmp_path):
    raw = raw_dataset(tmp_path)
    source = tfds.builder_from_directory(prepare(raw, tmp_path / "out")).as_data_source()
    assert [video_from_text(record["text"]) for record in source["annotations"]] == list(raw)
    frames = [raw.read_frame(0, 0), raw.read_frame(0, 1)] + [raw.read_frame(1, frame) for frame in range(3)]
    assert [record["image"] for record in source["images"]] == frames
    assert source["images"][1]["text"] == b"a/1.jpg"


def test_metadata_have_counts_and_checksums(tmp_path):
    raw = raw_dataset(tmp_path)
    folder = prepare(raw, tmp_path / "out", level="frames", shard_bytes=1)
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["num_videos"], metadata["num_images"]) == (4, 4)
    assert metadata["digest"] == raw.digest
    assert [len(shard["sizes"]) for shard in metadata["shards"]] == [1, 1, 1, 1]
    files = [shard[split] for shard in metadata["shards"] for split in ("annotations", "images")]
    for file in files:
        data = (folder / file["name"]).read_bytes()
        assert len(data) == file["num_bytes"]
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["dataset_info.json", "features.json", "metadata.json", *(file["name"] for file in files)]
    )


# ------------------------------------------------------------------------------------------------------- resuming


class Counting(RawDataset):
    """Counts how often frames are read, and stops at one of them."""

    read = 0
    stop_at = -1

    def read_frame(self, index, frame):
        self.read += 1
        if self.read == self.stop_at:
            raise KeyboardInterrupt
        return super().read_frame(index, frame)


def test_interrupted_preparation_goes_on(tmp_path):
    path, images = write_dataset(tmp_path, youtube_vis())
    dataset = Counting(path, images)
    dataset.stop_at = 4  # the second frame of the second video, which is the second shard
    with pytest.raises(KeyboardInterrupt):
        prepare(dataset, tmp_path / "out", shard_bytes=1)
    with pytest.raises(InputError, match="is not finished; run 'clipvis prepare' again"):
        open_prepared(tmp_path / "out")
    again = Counting(path, images)
    folder = prepare(again, tmp_path / "out", shard_bytes=1)
    assert again.read == 3
    assert_same(open_prepared(folder), RawDataset(path, images))
    assert not list(folder.glob(".*"))
    prepare(again, tmp_path / "out", shard_bytes=1)
    assert again.read == 3
    fresh = prepare(again, tmp_path / "fresh", shard_bytes=1)
    for file in fresh.iterdir():
        if file.name.endswith(".json"):
            assert json.loads(file.read_text()) == json.loads((folder / file.name).read_text())
        else:
            assert file.read_bytes() == (folder / file.name).read_bytes()


def test_a_finished_shard_that_got_lost_is_written_again(tmp_path):
    path, images = write_dataset(tmp_path, youtube_vis())
    dataset = Counting(path, images)
    dataset.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        prepare(dataset, tmp_path / "out", shard_bytes=1)
    (shard,) = (tmp_path / "out").rglob("*-images.array_record-00000-of-00002")
    shard.write_bytes(b"")
    assert_same(open_prepared(prepare(dataset, tmp_path / "out", shard_bytes=1)), RawDataset(path, images))


def test_unfinished_files_of_another_version_are_replaced(tmp_path):
    path, images = write_dataset(tmp_path, youtube_vis())
    dataset = Counting(path, images)
    dataset.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        prepare(dataset, tmp_path / "out", shard_bytes=1)
    content = youtube_vis()
    content["annotations"][1]["areas"] = [None, 1]
    path.write_text(json.dumps(content))
    dataset = RawDataset(path, images)
    assert_same(open_prepared(prepare(dataset, tmp_path / "out", shard_bytes=1)), dataset)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(InputError, match=r"annotations/clipvis_videos/1.0.0: was prepared from other annotations"):
        prepare(RawDataset(path, images), tmp_path / "out")


def test_only_one_process_writes(tmp_path):
    class Meanwhile(RawDataset):
        """Another process prepares the same while frames are read."""

        def read_frame(self, index, frame):
            with pytest.raises(InputError, match=r"another preparation is at work there; wait .* another folder$"):
                prepare(RawDataset(path, images), tmp_path / "out")
            return super().read_frame(index, frame)

    path, images = write_dataset(tmp_path, youtube_vis())
    dataset = Meanwhile(path, images)
    assert_same(open_prepared(prepare(dataset, tmp_path / "out")), RawDataset(path, images))


@pytest.mark.slow
def test_killed_process_goes_on(tmp_path):
    content = youtube_vis()
    videos, content["annotations"] = content["videos"], content["annotations"][:1]
    content["videos"] = [videos[0]] + [videos[0] | {"id": 100 + i} for i in range(120)]
    path, images = write_dataset(tmp_path, content)
    script = (
        "import sys; from pathlib import Path; from clipvis_jax.data.raw import RawDataset;"
        "from clipvis_jax.data.prepared import prepare;"
        "prepare(RawDataset(Path(sys.argv[1]), Path(sys.argv[2])), sys.argv[3], shard_bytes=1)"
    )
    command = [sys.executable, "-c", script, str(path), str(images), str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=os.environ | {"JAX_PLATFORMS": "cpu"})
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").rglob("unfinished/*.json"))) < 10:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "out").rglob("dataset_info.json"))
    raw = RawDataset(path, images)
    folder = prepare(raw, tmp_path / "out", shard_bytes=1)
    assert_same(open_prepared(folder), raw)
    assert not list(folder.glob(".*"))


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def folder(tmp_path):
    return prepare(raw_dataset(tmp_path), tmp_path / "out", shard_bytes=1)


def one_shard(folder, number=1):
    return next(folder.glob(f"*-images.array_record-{number:05}-of-00002"))


def test_damaged_bytes_are_noticed(folder):
    shard = one_shard(folder)
    data = bytearray(shard.read_bytes())
    start = data.index(b"\xff\xd8\xff")
    for place in range(start, start + 200):
        data[place] ^= 0xFF
    shard.write_bytes(bytes(data))
    prepared = open_prepared(folder)
    prepared[0]
    with pytest.raises(InputError, match=r"array_record-00001-of-00002: is damaged \([^\n]*\); remove it and prepare"):
        prepared.read_frame(1, 0)
    with pytest.raises(InputError, match=r"array_record-00001-of-00002: is damaged .its checksum differs"):
        prepared.verify()


def test_truncated_and_missing_files(folder):
    shard = one_shard(folder)
    data = shard.read_bytes()
    shard.write_bytes(data[:1000])
    with pytest.raises(InputError, match=rf"{shard}: is damaged .it has 1000 bytes instead of {len(data)}"):
        open_prepared(folder)
    shard.unlink()
    with pytest.raises(InputError, match=rf"{shard}: is missing"):
        open_prepared(folder)
    shard.write_bytes(data)
    open_prepared(folder)
    metadata = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(metadata | {"format_version": 99}))
    with pytest.raises(InputError, match=r"was not written by this version"):
        open_prepared(folder)


def without(*names):
    def edit(metadata):
        for name in names:
            del metadata[name]

    return edit


def put(value, *path):
    def edit(metadata):
        *parents, last = path
        for name in parents:
            metadata = metadata[name]
        metadata[last] = value

    return edit


BAD_METADATA = [
    (without("shards"), "has no 'shards'"),
    (without("categories"), "has no 'categories'"),
    (put([], "shards"), "its shards hold 0 videos and 0 images, not num_videos 2 and num_images 5"),
    (put(5, "shards"), r"shards: Expected array, got int"),
    (put([{"idd": 1}], "categories"), r"categories\[0\] has no 'id'"),
    (put([[1, 2]], "shards", 0, "sizes"), r"shards\[0\].sizes\[0\]: Expected array of length 3"),
    (put([[6, 0, 2]], "shards", 0, "sizes"), r"shards\[0\].sizes\[0\]\[1\]: Expected int >= 1"),
    (put("../x", "shards", 0, "images", "name"), r"shards\[0\].images.name: Expected str matching"),
    (put("..", "shards", 0, "images", "name"), r"shards\[0\].images.name: Expected str matching"),
    (put("../../x", "shards", 0, "images", "sha256"), r"shards\[0\].images.sha256: Expected str matching"),
    (put("x", "level"), r"level: Invalid enum value 'x'"),
    (put({}, "info", "server"), r"info.server has no 'name'"),
]


@pytest.mark.parametrize(("edit", "message"), BAD_METADATA, ids=[message for _, message in BAD_METADATA])
def test_damaged_metadata(folder, edit, message):
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text())
    edit(metadata)
    path.write_text(json.dumps(metadata))
    with pytest.raises(InputError, match=rf"^{path}: {message}[^\n]*; remove it and prepare the data set again$"):
        open_prepared(folder)


@pytest.mark.parametrize("name", ["metadata.json", "features.json"])
@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", "5", "\0", "[" * 10_000])
def test_damaged_small_files(folder, name, text):
    path = folder / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=rf"^{path}: [^\n]*; remove it and prepare the data set again$"):
        open_prepared(folder)


TEXT = "tensorflow_datasets.core.features.text_feature.Text"


@pytest.mark.parametrize(
    "edit",
    [
        put("hostile.Text", "pythonClassName"),
        put("hostile.Text", "featuresDict", "features", "text", "pythonClassName"),
        put({"pythonClassName": "hostile.Text", "text": {}}, "featuresDict", "features", "more"),
        put({"type": "hostile.Text", "content": {}}, "featuresDict", "features", "text"),
        put({"pythonClassName": TEXT, "sequence": {"feature": {"pythonClassName": "hostile.Text"}}}, "sequence"),
    ],
)
def test_no_module_that_a_folder_names_is_imported(folder, tmp_path, monkeypatch, edit):
    (tmp_path / "hostile.py").write_text("from pathlib import Path; Path('imported').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    features = json.loads((folder / "features.json").read_text())
    edit(features)
    (folder / "features.json").write_text(json.dumps(features))
    with suppress(InputError):  # what stands beside the features is of no use, and of no harm
        list(open_prepared(folder))
    assert not (tmp_path / "imported").exists()


def test_records_are_checked(tmp_path):
    raw = raw_dataset(tmp_path)
    record = json.loads(video_to_text(raw[0]))
    instance = record["instances"][0]
    for edit, message in [
        (put([], "masks"), r"instances\[0\].masks has 0 entries for 2 frames"),
        (put([1.0] * 5, "areas"), r"instances\[0\].areas has 5 entries for 2 frames"),
        (put(["0", None], "masks"), "has a mask whose counts do not add up to its size"),
        (put([[[0, 1e9, 1e9, 0, -1e9, 5]], None], "masks"), r"instances\[0\].masks: holds a polygon whose outline"),
        (put("x", "id"), r"instances\[0\].id: Expected int, got str"),
    ]:
        changed = dict(instance)
        edit(changed)
        with pytest.raises(InputError, match=rf"^text of a video[:.] ?{message}"):
            video_from_text(json.dumps(record | {"instances": [changed]}))


def test_folders_that_hold_none_or_several(tmp_path):
    with pytest.raises(InputError, match="nowhere: does not exist; write it with"):
        open_prepared(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no prepared data set"):
        open_dataset(tmp_path / "empty")
    raw = raw_dataset(tmp_path / "raw")
    for level in ("videos", "frames"):
        prepare(raw, tmp_path / "out", level=level)
    with pytest.raises(InputError, match=r"holds several data sets .youtube_vis/clipvis_frames/1.0.0, youtube_vis/"):
        open_dataset(tmp_path / "out")
    assert open_dataset(tmp_path / "out" / "youtube_vis" / "clipvis_frames").level == "frames"


@pytest.mark.parametrize("name", ["..", ".", ".git", "a/../..", "\n", "...."])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    dataset = RawDataset(*write_dataset(tmp_path / "raw", FILES["youtube_vis"]()), name=name)
    folder = prepare(dataset, tmp_path / "out").resolve()
    assert folder.parents[2] == tmp_path / "out"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]
    assert open_prepared(folder).name == name


def test_what_cannot_be_prepared(tmp_path):
    content = youtube_vis()
    del content["annotations"]
    test_set = RawDataset(*write_dataset(tmp_path / "a", content))
    with pytest.raises(InputError, match="annotations: has no annotated frames; prepare it with the level 'videos'"):
        prepare(test_set, tmp_path / "out", level="frames")
    assert_same(open_prepared(prepare(test_set, tmp_path / "out")), test_set)
    empty = RawDataset(*write_dataset(tmp_path / "b", content | {"videos": []}))
    with pytest.raises(InputError, match="annotations: has no videos to prepare"):
        prepare(empty, tmp_path / "out")
    raw = raw_dataset(tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*: cannot be written"):
        prepare(raw, tmp_path / "file")
    (tmp_path / "c" / "images" / "b" / "0.jpg").unlink()
    with pytest.raises(InputError, match=r"b/0.jpg: is missing .frame 0 of video 7"):
        prepare(raw, tmp_path / "out")


def test_full_disk(tmp_path, monkeypatch):
    class FullDisk:
        def __init__(self, *_):
            pass

        def write(self, _):
            raise RuntimeError("write() failed: No space left on device;\n writing")

        def close(self):
            raise RuntimeError("close failed")

    monkeypatch.setattr(writing, "ArrayRecordWriter", FullDisk)
    with pytest.raises(InputError, match=r"^[^\n]*00000-of-00001: cannot be written .write.. failed: No space[^\n]*$"):
        prepare(raw_dataset(tmp_path), tmp_path / "out")


# ----------------------------------------------------------------------------------------------------- object stores


class Store(MemoryFileSystem):
    """An object store in memory, in the place of Google's."""

    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol("/" + str(path).removeprefix("gs://").lstrip("/"))


@pytest.fixture
def store(monkeypatch):
    backend = epath.backend.fsspec_backend
    get = backend._get_filesystem
    monkeypatch.setattr(backend, "_get_filesystem", lambda name: Store() if name == "gcs" else get(name))
    Store.store.clear()
    return Store.store


def test_object_store(tmp_path, monkeypatch, store):
    """Only whole files go to and fro, and what is fetched is kept."""
    cache = tmp_path / "cache" / "prepared"
    monkeypatch.setenv("CLIPVIS_CACHE", str(tmp_path / "cache"))
    raw = raw_dataset(tmp_path)
    assert str(prepare(raw, "gs://bucket/out", shard_bytes=1)).startswith("gs://bucket/out/youtube_vis")
    assert len([name for name in store if ".array_record-" in name]) == 4
    prepared = open_dataset("gs://bucket/out")
    assert not cache.exists()
    assert_same(prepared, raw)
    prepared.verify()
    cached = sorted(cache.iterdir())
    assert len(cached) == 4
    times = [path.stat().st_mtime_ns for path in cached]
    assert_same(pickle.loads(pickle.dumps(prepared)), raw)
    assert [path.stat().st_mtime_ns for path in cached] == times
    for path in cached:
        path.unlink()
    (name,) = (name for name in store if "images.array_record-00001" in name)
    data = store[name].getvalue()
    store[name].seek(0)
    store[name].write(data[:-1] + b"x")
    with pytest.raises(InputError, match=r"00001-of-00002: is damaged .its checksum differs"):
        open_dataset("gs://bucket/out").read_frame(1, 0)
    assert not list(cache.iterdir())


def test_object_stores_that_cannot_be_reached(tmp_path, monkeypatch):
    def no_package(_):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(epath.backend.fsspec_backend, "_get_filesystem", no_package)
    with pytest.raises(InputError, match=r"^gs://bucket/out: cannot be reached .Please install gcsfs"):
        open_dataset("gs://bucket/out")
    with pytest.raises(InputError, match=r"^gs://bucket/out: cannot be reached .Please install gcsfs"):
        prepare(raw_dataset(tmp_path), "gs://bucket/out")
    with pytest.raises(InputError, match=r"^ftpx://bucket/out: is of an unknown kind"):
        open_dataset("ftpx://bucket/out")


def test_sizes_of_shards():
    sizes = [(100, 100, frames) for frames in (1, 2, 3, 4, 1, 1)]
    bounds = writing._shard_bounds(sizes, 10_000)
    assert bounds[0] == 0
    assert bounds[-1] == 6
    assert bounds == sorted(set(bounds))
    assert len(bounds) == 4
    assert writing._shard_bounds(sizes, 1) == [0, 1, 2, 3, 4, 6]  # as many as videos, if all were as long
    assert writing._shard_bounds(sizes, 10**9) == [0, 6]


def test_folders_named_like_a_pattern(tmp_path):
    raw = raw_dataset(tmp_path)
    for name in ("**", "[a]", "a?*"):
        assert_same(open_prepared(prepare(raw, tmp_path / name).parents[2]), raw)


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    raw = raw_dataset(tmp_path)
    folder = prepare(raw, tmp_path / "out")
    assert not list((tmp_path / "tmp").iterdir())
    names = sorted(path.name for path in folder.iterdir())
    (folder / "unfinished").mkdir()  # killed just before the end
    assert prepare(raw, tmp_path / "out") == folder
    assert sorted(path.name for path in folder.iterdir()) == names
