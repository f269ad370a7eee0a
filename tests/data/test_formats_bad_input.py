"""Annotation files and image folders that cannot be used: one line each, naming file, record and field."""

import json
import os
import pickle
from pathlib import Path

import pytest
from annotation_files import (
    FILES,
    HEIGHT,
    WIDTH,
    box_mask,
    burst,
    coco,
    compressed,
    image_bytes,
    lvis,
    write_dataset,
    youtube_vis,
)
from json_edits import DELETE, changed

from clipvis_jax import InputError
from clipvis_jax.data import annotation_index
from clipvis_jax.data.formats import BURST, COCO, YOUTUBE_VIS
from clipvis_jax.data.formats.parts import read_category
from clipvis_jax.data.frames import decode_frame
from clipvis_jax.data.image_folder import ImageFolder
from clipvis_jax.data.raw import RawDataset
from clipvis_jax.evaluation import ground_truth_from, load_results


def fails(tmp_path, content, message, **options):
    path, images = write_dataset(tmp_path, content, frames=False)
    with pytest.raises(InputError, match=rf"^{path}: [^\n]*{message}[^\n]*$"):
        RawDataset(path, images, **options)


TURNED = compressed(box_mask(size=(WIDTH, HEIGHT)))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["videos", 1, "id"], 7, r"videos\[1\].id is 7, which an earlier record has"),
        (["annotations", 2, "id"], 1, r"annotations\[2\].id is 1, which an earlier"),
        (["categories", 1, "id"], 30, r"categories\[1\].id is 30, which an earlier"),
        (["categories", 0, "name"], DELETE, r"categories\[0\] has no 'name'"),
        (["categories", 0, "synonyms"], [3], r"categories\[0\].synonyms\[0\]: Expected str, got int"),
        (["categories", 0, "frequency"], "x", r"categories\[0\].frequency: Invalid enum value 'x'"),
        (["categories", 0, "frequency"], "x" * 10_000, r"frequency: Invalid enum value 'x{80,100}\.\.\.$"),
        (["categories", 0, "partition"], "0", r"categories\[0\].partition: Expected int . null, got str"),
        (["videos", 0, "id"], "7", r"videos\[0\].id: Expected int, got str"),
        (["videos", 0, "height"], 0, r"videos\[0\].height: Expected int >= 1"),
        (["videos", 0, "length"], 4, r"videos\[0\].length is 4, but there are 3 file_names"),
        (["videos", 0, "file_names"], [], r"videos\[0\].file_names: Expected array of length >= 1"),
        (["videos", 0, "file_names"], DELETE, r"videos\[0\] has no 'file_names'"),
        (["videos", 0, "file_names", 1], 5, r"videos\[0\].file_names\[1\]: Expected str, got int"),
        (["videos", 0, "file_names", 1], "../../etc/passwd", r"file_names\[1\] is '../../etc/passwd', which leads out"),
        (["videos", 0, "file_names", 1], "a\\..\\passwd", r"file_names\[1\] is .*, which leads out"),
        (["videos", 0, "file_names", 1], "/etc/passwd", r"file_names\[1\] is '/etc/passwd', which leads out"),
        (["videos", 0, "file_names", 1], "a\0b", r"file_names\[1\] is .*, which leads out"),
        (
            ["videos", 0, "file_names", 1],
            "\ud800.jpg",
            r"is not valid JSON .unexpected end of hex escape .*near .*ud800.*half a surrogate",
        ),
        (
            ["categories", 0, "name"],
            "\udc80",
            r"is not valid JSON .invalid utf-16 .*udc80.*half a surrogate",
        ),
        (["videos"], DELETE, r"has neither 'videos' .*; give a whole"),
        (["videos"], {"id": 1}, r"videos: Expected array . null, got object"),
        (["categories"], DELETE, r"has no 'categories'; give a whole"),
        (["annotations"], {}, r"annotations: Expected array . null, got object"),
        (["annotations", 0], None, r"annotations\[0\]: Expected object, got null"),
        (["annotations", 0, "video_id"], 8, r"annotations\[0\].video_id is 8, but there is no such video"),
        (["annotations", 0, "category_id"], 1, r"annotations\[0\].category_id is 1, but there is no such category"),
        (["annotations", 0, "iscrowd"], 2, r"annotations\[0\].iscrowd is 2.0; 0 or 1"),
        (["annotations", 0, "areas"], [1], r"annotations\[0\].areas has 1 entries for 3 frames"),
        (["annotations", 0, "areas", 0], float("nan"), r"is not valid JSON .*near .*NaN.*; JSON has no NaN"),
        (["annotations", 0, "areas", 0], 10**400, r"annotations\[0\].areas\[0\]: Number out of range"),
        (["annotations", 0, "bboxes", 2], [1, 2, 3], r"annotations\[0\].bboxes\[2\] is \[1.0, 2.0, 3.0\]; \[left, top"),
        (["annotations", 0, "bboxes", 2, 0], "1", r"annotations\[0\].bboxes\[2\]\[0\]: Expected float, got str"),
        (["annotations", 0, "segmentations"], DELETE, r"annotations\[0\] has no 'segmentations'"),
        (["annotations", 2, "segmentations"], [None], r"annotations\[2\].segmentations has 1 masks, but video 7 has 3"),
        (
            ["annotations", 1, "segmentations", 1],
            TURNED,
            r"\[1\].segmentations: size is \[8, 6\], but video 2",
        ),
        (["annotations", 0, "segmentations", 1], TURNED, r"segmentations\[2\].size is \[6, 8\], but an earlier mask"),
        (
            ["annotations", 0, "segmentations", 1],
            5,
            r"\[0\].segmentations\[1\]: Expected object .*, got int",
        ),
        (["annotations", 0, "segmentations", 1, "counts"], [1, 2], r"segmentations\[1\] counts are not whole numbers"),
        (["annotations", 0, "segmentations", 2, "counts"], "o9", r"annotations\[0\]: the mask of frame 2 is damaged"),
        (
            ["annotations", 0, "segmentations", 0, 0, 1],
            1e7,
            r"segmentations\[0\] holds a polygon whose outline",
        ),
        (
            ["annotations", 0, "segmentations", 0, 0, 1],
            float("-inf"),
            r"is not valid JSON .*Infinity.*; JSON has no NaN",
        ),
        (["annotations", 0, "segmentations", 0, 0, 1], 10**400, r"segmentations\[0\]\[0\]\[1\]: Number out of range"),
        (
            ["annotations", 0, "segmentations", 1, "size"],
            [10**20, 5],
            r"segmentations\[1\].size\[0\]: Expected int <= 32768",
        ),
        (
            ["annotations", 0, "segmentations", 1, "size"],
            [0, 0],
            r"segmentations\[1\].size\[0\]: Expected int >= 1",
        ),
        (
            ["annotations", 0, "segmentations", 1],
            {"size": [2**16, 2**16], "counts": [2**32]},
            r"segmentations\[1\].size\[0\]: Expected int <= 32768",
        ),
        (["annotations", 0, "segmentations", 0, 0, 1], "x", r"segmentations\[0\]\[0\]\[1\]: Expected float, got str"),
    ],
)
def test_youtube_vis(tmp_path, path, value, message):
    fails(tmp_path, changed(youtube_vis(), path, value), message)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["images", 1, "id"], 12, r"images\[1\].id is 12, which an earlier"),
        (["images", 1, "file_name"], DELETE, r"images\[1\] has no 'file_name'"),
        (["images", 1, "file_name"], "/3.jpg", r"images\[1\].file_name is '/3.jpg', which leads out"),
        (["annotations", 0, "image_id"], 8, r"annotations\[0\].image_id is 8, but there is no such image"),
        (["annotations", 0, "segmentation"], DELETE, r"annotations\[0\] has no 'segmentation'"),
        (["annotations", 1, "segmentation"], TURNED, r"annotations\[1\].segmentation: size is \[8, 6\], but image 12"),
        (["annotations", 1, "segmentation", "counts"], [1], r"annotations\[1\].segmentation counts are not whole"),
        (["annotations", 0, "area"], "x", r"annotations\[0\].area: Expected float . null, got str"),
    ],
)
def test_coco(tmp_path, path, value, message):
    fails(tmp_path, changed(coco(), path, value), message)


def test_lvis(tmp_path):
    fails(tmp_path, changed(lvis(), ["images", 0, "coco_url"], "http://x/../1.jpg"), "coco_url is .*leads out")
    fails(
        tmp_path,
        changed(lvis(), ["images", 0, "neg_category_ids"], ["x"]),
        r"neg_category_ids\[0\]: Expected int",
    )
    fails(
        tmp_path,
        changed(lvis(), ["categories", 1, "frequency"], DELETE),
        "category 2 has no 'freq",
        drop_frequencies="r",
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["sequences", 1, "id"], 1, r"sequences\[1\].id is 1, which an earlier"),
        (["sequences", 0, "dataset"], DELETE, r"sequences\[0\] has no 'dataset'"),
        (["sequences", 0, "dataset"], "../x", r"annotated_image_paths\[0\] is '../x/v_1/f1.jpg', which leads out"),
        (
            ["sequences", 0, "annotated_image_paths"],
            [],
            r"sequences\[0\].annotated_image_paths: Expected array of",
        ),
        (["sequences", 0, "segmentations"], [{}], r"segmentations has 1 frames for 2 annotated"),
        (["sequences", 0, "segmentations", 0], [], r"segmentations\[0\]: Expected object, got array"),
        (["sequences", 0, "segmentations", 0], {"9": {"rle": "x"}}, r"segmentations\[0\] has track '9', which has no"),
        (
            ["sequences", 0, "segmentations", 0, "1", "rle"],
            [1],
            r"segmentations\[0\]\[...\].rle: Expected str",
        ),
        (["sequences", 0, "segmentations", 0, "1", "rle"], "o9", r"sequences\[0\]: the mask of frame 0 is damaged"),
        (
            ["sequences", 0, "track_category_ids"],
            [],
            r"sequences\[0\].track_category_ids: Expected object",
        ),
        (["sequences", 0, "track_category_ids", "1"], "x", r"track_category_ids\[...\]: Expected int, got str"),
        (["sequences", 0, "track_category_ids", "1"], 2, r"a track of video 1.category_id is 2, but there is no such"),
    ],
)
def test_burst(tmp_path, path, value, message):
    fails(tmp_path, changed(burst(), path, value), message)


@pytest.mark.parametrize("expected", [COCO, BURST, YOUTUBE_VIS])
@pytest.mark.parametrize("name", FILES)
def test_another_format_than_expected(tmp_path, name, expected):
    found = {"lvis": COCO, "coco": COCO, "burst": BURST}.get(name, YOUTUBE_VIS)
    if found is not expected:
        message = f"is in {found.title} format .'{found.videos}'.*, but {expected.title} format .* is needed"
        fails(tmp_path, FILES[name](), message, annotation_format=expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an annotation file"),
        (b"[]", "is not an annotation file; its JSON must begin with an object"),
        (b"{}", "has neither 'videos'"),
        (b'{"info": 1}', "has neither 'videos'"),
        (b'{"videos": [{"id": 1, "hei', "is not valid JSON .Input data was truncated.*cut off"),
        (b'{"videos": [', "is not valid JSON .Input data was truncated"),
        (b'{"videos": []', "is not valid JSON .Input data was truncated"),
        (b'{"videos": [], "images": [1,]}', "is not valid JSON .trailing comma in array at byte 28"),
        (b'{"videos": [], }', "is not valid JSON .trailing comma in object at byte 15.*; correct it"),
        (b'{"videos": [] "x": 1}', "is not valid JSON .expected ',' or '}'"),
        (b'{"videos": [], 5: 1}', "is not valid JSON .object keys must be strings"),
        (b'{"videos" []}', "is not valid JSON .expected ':'"),
        (b'{"videos": [], "categories": []} x', "is not valid JSON .trailing characters at byte 34"),
        (
            b'{"videos": [], "categories": [{"id": 1, "name": "\xff"}]}',
            r"categories.0.: is not valid JSON .Inval.*; save it as UTF-8",
        ),
        (b'{"info": [' + b"[" * 100_000, "is not valid JSON .maximum recursion.*nested so deeply"),
        (b'{"videos": ["\\ud800"]}', "is not valid JSON .Input data was truncated.; half a surrogate"),
        (b'{"videos": ["Infinity", "\\ud83d', "is not valid JSON .Input data was truncated.; it may be cut off"),
        (b" \n" * 200 + b"{}", "has neither 'videos'"),
        ('{"videos": []}'.encode("utf-16"), "is not an annotation file"),
    ],
)
def test_unusable_files(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: {message}[^\n]*$"):
        RawDataset(path, tmp_path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_truncated_file(tmp_path, share):
    path, images = write_dataset(tmp_path, youtube_vis(), frames=False)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=rf"^{path}: is not valid JSON .*cut off: write or download it again$"):
        RawDataset(path, images)


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"nothing.json: cannot be read \(No such file"):
        RawDataset(tmp_path / "nothing.json", tmp_path)
    path, images = write_dataset(tmp_path, youtube_vis())
    (images / "b" / "1.jpg").unlink()
    dataset = RawDataset(path, images)
    with pytest.raises(InputError, match=r"^.*images/b/1.jpg: is missing \(frame 1 of video 7\); complete"):
        dataset.read_frame(1, 1)
    dataset = RawDataset(path, tmp_path / "elsewhere")
    with pytest.raises(InputError, match="elsewhere: is not a folder; the data set's images must lie there"):
        dataset.check_images()


def test_links_in_the_image_folder_are_followed(tmp_path):
    """People link folders of images to other disks."""
    path, images = write_dataset(tmp_path, youtube_vis())
    expected = (images / "b" / "1.jpg").read_bytes()
    (images / "b").rename(tmp_path / "elsewhere")
    (images / "b").symlink_to(tmp_path / "elsewhere")
    dataset = RawDataset(path, images)
    assert dataset.read_frame(1, 1) == expected
    for name in ("../elsewhere/1.jpg", str(tmp_path / "elsewhere" / "1.jpg")):
        with pytest.raises(InputError, match="leads out of the image folder"):
            dataset.images.read(name, "a frame")


def test_names_in_messages_are_escaped(tmp_path):
    """A name from a file must not forge a line or control the terminal."""
    name = "b/x\nclipvis: error: all is well\x1b]0;PWNED\a\x1b[2J.jpg"
    path, images = write_dataset(tmp_path, changed(youtube_vis(), ["videos", 0, "file_names", 0], name), frames=False)
    with pytest.raises(InputError, match=r"x\\nclipvis: .*\\x1b\]0;PWNED\\x07.*: is missing") as error:
        RawDataset(path, images).read_frame(1, 0)
    assert str(error.value).isprintable()


def test_outlines_of_polygons_are_bounded(tmp_path):
    """pycocotools allocates by the length of outlines: this one takes gigabytes, though every corner is near."""
    outline = [1e5, 1e5, 0, 0] * 10
    fails(tmp_path, changed(coco(), ["annotations", 0, "segmentation", 0], outline), "holds a polygon whose outline is")
    content = changed(coco(), ["annotations", 0, "segmentation", 0], [-1e5, 0, 1e5, 0, 1e5, 10])
    (mask,) = RawDataset(*write_dataset(tmp_path, content, frames=False))[1].instances[0].masks
    assert isinstance(mask, tuple)


HOSTILE = Path(__file__).parents[1] / "cases" / "hostile"


def test_an_outline_that_would_end_the_process_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"annotations\[0\].segmentations\[0\] holds a polygon whose outline is"):
        RawDataset(HOSTILE / "polygon_bomb.json", tmp_path)


def test_names_of_the_cases_are_escaped(tmp_path):
    with pytest.raises(InputError, match=r"x\\nclipvis: error: all is well\\x1b\]0;PWNED\\x07.*: is missing") as error:
        RawDataset(HOSTILE / "terminal_file_names.json", tmp_path).read_frame(0, 0)
    assert str(error.value).isprintable()
    truth = ground_truth_from(RawDataset(HOSTILE / "terminal_class_names.json", tmp_path))
    results = tmp_path / "tracks.json"
    results.write_text(json.dumps({"categories": [{"id": 1, "name": "star"}], "results": []}))
    with pytest.raises(InputError, match=r"plain \\x1b\[31mred.*star\\nfake line") as error:
        load_results(results, truth)
    assert str(error.value).isprintable()


def test_file_that_changed(tmp_path):
    path, images = write_dataset(tmp_path, youtube_vis(), frames=False)
    dataset = RawDataset(path, images)
    path.write_text(json.dumps(youtube_vis()) + " ")
    with pytest.raises(InputError, match="has changed since it was opened; start again"):
        dataset[0]
    again = pickle.loads(pickle.dumps(dataset))
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        again[0]


def test_file_replaced_while_it_is_read(tmp_path, monkeypatch):
    """The places must be used with the very file that they were taken from."""
    path, images = write_dataset(tmp_path, youtube_vis(), frames=False)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(youtube_vis(), indent=1))

    def replace_and_read(*args):
        if other.exists():
            other.replace(path)
        return read_category(*args)

    monkeypatch.setattr(annotation_index, "read_category", replace_and_read)
    dataset = RawDataset(path, images)
    with pytest.raises(InputError, match="has changed since it was opened; start again"):
        dataset[0]


def test_decoded_frames_have_the_annotated_size(tmp_path):
    path, images = write_dataset(tmp_path, youtube_vis())
    (images / "b" / "1.jpg").write_bytes(image_bytes(0, WIDTH, HEIGHT))
    (images / "b" / "2.jpg").write_bytes(b"x")
    dataset = RawDataset(path, images)
    assert decode_frame(dataset, 1, 0, dataset[1]).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(InputError, match=r"annotations: b/1.jpg \(video 7\) is 6x8 pixels, but the .* say 8x6"):
        decode_frame(dataset, 1, 1, dataset[1])
    with pytest.raises(InputError, match=r"annotations: b/2.jpg: is not an image that can be read"):
        decode_frame(dataset, 1, 2, dataset[1])


def test_an_image_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a.jpg: is not a file \(video 7\); give an image"):
        ImageFolder(tmp_path).read("a.jpg", "video 7")


def test_mistakes_are_found_early(tmp_path):
    """A mistake near the beginning must not make us read the rest of a large file."""
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.write(b'{"videos": [{"id" 1}, ')
        os.ftruncate(file.fileno(), 10**11)  # a sparse file
    with pytest.raises(InputError, match=r"is not valid JSON .expected ':' at byte 18 of 100000000000, near"):
        RawDataset(path, tmp_path)
