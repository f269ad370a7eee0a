"""Ground truth from a data set is the same, published or prepared, and as BURST's or converted."""

import json

import pytest
from annotation_files import burst, burst_converted, image_bytes, write_dataset, youtube_vis
from conftest import GOLDENS

from clipvis_jax import InputError
from clipvis_jax.data.prepared import open_prepared, prepare
from clipvis_jax.data.raw import RawDataset
from clipvis_jax.evaluation import PROTOCOLS, evaluate, ground_truth_from, load_results, parse_results

CASES = sorted(path.name for path in (GOLDENS / "eval").iterdir())


@pytest.mark.parametrize("case", CASES)
def test_prepared_equals_the_annotation_file(tmp_path, case):
    """All official cases: crowds, missing frames, wrong areas, all encodings."""
    content = json.loads((GOLDENS / "eval" / case / "gt.json").read_text())
    for video in content["videos"]:
        video["file_names"] = [f"{video['id']}.jpg"] * video["length"]
        (tmp_path / f"{video['id']}.jpg").write_bytes(image_bytes(video["id"]))
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    raw = RawDataset(path, tmp_path)
    truths = [ground_truth_from(dataset) for dataset in (raw, open_prepared(prepare(raw, tmp_path / "out")))]
    for protocol in ("ytvis", "lvvis"):
        expected, found = (
            evaluate(
                truth,
                load_results(GOLDENS / "eval" / case / "results.json", truth, compatible=True),
                PROTOCOLS[protocol],
            )
            for truth in truths
        )
        assert found.stats == expected.stats
        assert found.per_category == expected.per_category
        assert found.groups == expected.groups


def test_burst_as_published_equals_the_conversion(tmp_path):
    mask = {"size": [6, 8], "counts": burst()["sequences"][1]["segmentations"][0]["2"]["rle"]}
    metrics = []
    # The conversion counts annotations from 0, and the official code never finds annotation 0.
    converted = burst_converted()
    for annotation in converted["annotations"]:
        annotation["id"] += 1
    for content, classes in ((burst(), (805, 1057)), (converted, (1, 2))):
        truth = ground_truth_from(RawDataset(*write_dataset(tmp_path / str(classes[0]), content, frames=False)))
        results = [
            {"video_id": video, "category_id": classes[row], "score": 0.5, "segmentations": [mask] * length}
            for video, row, length in ((0, 0, 1), (1, 0, 2), (1, 1, 2))
        ]
        metrics.append(evaluate(truth, parse_results(results, truth), PROTOCOLS["ytvis"]))
    assert metrics[0].stats == metrics[1].stats
    assert metrics[0].stats["AP50"] == pytest.approx(1)
    assert metrics[0].stats["AP"] < 1


def test_first_videos_only(tmp_path):
    dataset = RawDataset(*write_dataset(tmp_path, youtube_vis(), frames=False))
    truth = ground_truth_from(dataset, 1)
    assert set(truth.videos) == {2}
    assert [annotation.id for annotation in truth.annotations] == [5]
    assert truth.categories[30] == {"id": 30, "name": "naïve fox", "partition": 2}
    content = youtube_vis() | {"annotations": None}
    with pytest.raises(InputError, match="annotations: has no annotations, as test sets"):
        ground_truth_from(RawDataset(*write_dataset(tmp_path, content, frames=False)))
    empty = ground_truth_from(RawDataset(*write_dataset(tmp_path, content, frames=False)), may_be_empty=True)
    assert (set(empty.videos), set(empty.categories), empty.annotations) == ({2, 7}, {30, 4}, [])


@pytest.mark.parametrize(
    "segmentation",
    [[], [[1, 1, 20, 20]], [[1, 1, 20, 20, 1, 20, 5]]],
    ids=["boxes alone", "outlines of two points", "an odd count of numbers"],
)
def test_boxes_without_masks_are_no_ground_truth(tmp_path, segmentation):
    image = {"id": 1, "file_name": "a.png", "height": 96, "width": 150}
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 20, 20], "segmentation": segmentation}
    path = tmp_path / "boxes.json"
    content = {"images": [image], "categories": [{"id": 3, "name": "cat"}], "annotations": [annotation]}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="have boxes, but no mask with a pixel"):
        ground_truth_from(RawDataset(path, tmp_path))
