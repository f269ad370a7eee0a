import time
from collections.abc import Callable

import numpy as np
import pytest

from clipvis_jax.media.visualize import color_palette, draw_tracks, track_color


def grey_frame(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def rectangle(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    top, left, bottom, right = box
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def label_boxes(drawn: np.ndarray, colors: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Bounding boxes (top, left, bottom, right) of the pixels that have exactly each colour."""
    boxes = []
    for color in colors:
        rows, columns = np.nonzero((drawn == color).all(axis=-1))
        boxes.append((rows.min(), columns.min(), rows.max() + 1, columns.max() + 1))
    return boxes


def test_inside_is_tinted_the_edge_is_solid_the_rest_is_untouched() -> None:
    frame = grey_frame(400, 500)
    mask = rectangle(400, 500, (200, 100, 300, 250))
    drawn = draw_tracks(frame, mask[None], [""], np.array([[255, 0, 0]], np.uint8))
    assert (frame == 128).all()
    red = (255, 0, 0)
    assert tuple(drawn[200, 130]) == tuple(drawn[250, 100]) == tuple(drawn[299, 249]) == red
    inside = drawn[202:298, 102:248].reshape(-1, 3)
    assert (inside == inside[0]).all()
    assert inside[0][0] > 128 > inside[0][1] == inside[0][2] > 0
    outside = ~mask
    outside[150:200] = False  # the label's place
    assert (drawn[outside] == 128).all()


@pytest.mark.parametrize(("size", "thickness"), [(100, 1), (720, 2), (2160, 3)])
def test_the_outline_grows_with_the_frame(size: int, thickness: int) -> None:
    mask = rectangle(size, size, (size // 2, 0, size, size))
    drawn = draw_tracks(grey_frame(size, size), mask[None], [""], np.array([[0, 0, 255]], np.uint8))
    column = drawn[size // 2 :, size // 2]
    assert (column[:thickness] == (0, 0, 255)).all()
    assert (column[thickness] != (0, 0, 255)).any()


def test_an_outline_is_not_tinted_by_a_mask_above_it() -> None:
    masks = np.stack([rectangle(300, 300, (100, 100, 200, 200)), rectangle(300, 300, (90, 90, 250, 250))])
    drawn = draw_tracks(grey_frame(300, 300), masks, ["", ""], color_palette(2))
    assert tuple(drawn[199, 150]) == track_color(0)


def test_the_label_stands_above_its_mask_in_its_color() -> None:
    mask = rectangle(400, 400, (200, 150, 300, 250))
    drawn = draw_tracks(grey_frame(400, 400), mask[None], ["dog 0.87"], np.array([[255, 255, 0]], np.uint8))
    above = drawn[:200]
    rows, columns = np.nonzero((above == (255, 255, 0)).all(axis=-1))
    assert rows.max() == 199
    assert abs((columns.min() + columns.max()) / 2 - 200) <= 2
    text = above[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert (text.sum(axis=-1) < 150).sum() > 20  # black on yellow


@pytest.mark.parametrize(
    ("color", "text"), [((255, 255, 0), 0), ((0, 0, 160), 255), ((0, 255, 0), 0), ((200, 0, 0), 255)]
)
def test_text_contrasts_with_its_box(color: tuple[int, int, int], text: int) -> None:
    mask = rectangle(400, 400, (200, 150, 300, 250))
    drawn = draw_tracks(grey_frame(400, 400), mask[None], ["WWW"], np.array([color], np.uint8))
    assert (drawn[:200] == text).all(axis=-1).any()
    assert not (drawn[:200] == 255 - text).all(axis=-1).any()


@pytest.mark.parametrize("corner", [(0, 0), (0, 390), (390, 0), (390, 390)])
def test_labels_stay_inside_the_frame(corner: tuple[int, int]) -> None:
    mask = rectangle(400, 400, (*corner, corner[0] + 10, corner[1] + 10))
    colors = np.array([[255, 255, 0]], np.uint8)
    alone = draw_tracks(grey_frame(400, 400), rectangle(400, 400, (200, 200, 210, 210))[None], ["dog"], colors)
    drawn = draw_tracks(grey_frame(400, 400), mask[None], ["dog"], colors)
    # As many pixels as where there is room on all sides, less at most those of the mask below the label.
    assert (drawn != 128).any(axis=-1).sum() >= (alone != 128).any(axis=-1).sum() - 100


@pytest.mark.parametrize("top", [0, 200, 390])
def test_labels_do_not_cover_one_another(top: int) -> None:
    # Nine masks in nearly the same place: all labels are wanted at the same spot.
    masks = np.stack([rectangle(400, 400, (top + i, 200 + i, top + 10, 220)) for i in range(9)])
    colors = color_palette(9)
    drawn = draw_tracks(grey_frame(400, 400), masks, ["dog 0.87"] * 9, colors)
    boxes = [b for b in label_boxes(np.where(masks.any(0)[..., None], 128, drawn), colors)]
    heights = {bottom - top for top, _, bottom, _ in boxes}
    tops = sorted(top for top, *_ in boxes)
    assert len(heights) == 1, "a label is partly covered"
    assert min(np.diff(tops)) >= heights.pop()
    assert max(tops) - min(tops) < 9 * 14, "labels went further than they had to"


def test_a_label_that_must_move_goes_to_the_nearest_place() -> None:
    tops = (100, 300, 301)
    masks = np.stack([rectangle(400, 400, (top, 150, top + 1, 250)) for top in tops])
    colors = color_palette(3)
    drawn = draw_tracks(grey_frame(400, 400), masks, ["dog"] * 3, colors)
    (far, *_), (_, _, wanted, _), (moved, *_) = label_boxes(np.where(masks.any(0)[..., None], 128, drawn), colors)
    assert far < 100
    assert abs(moved - wanted) <= 2  # less the rows of the masks


def test_labels_overlap_rather_than_leave_a_full_frame() -> None:
    masks = np.ones((20, 40, 200), bool)
    drawn = draw_tracks(grey_frame(40, 200), masks, ["dog"] * 20, color_palette(20))
    assert drawn.shape == (40, 200, 3)


def test_empty_masks_draw_nothing() -> None:
    frame = grey_frame(100, 100)
    drawn = draw_tracks(frame, np.zeros((2, 100, 100), bool), ["dog", "cat"], color_palette(2))
    np.testing.assert_array_equal(drawn, frame)


def test_no_tracks() -> None:
    frame = grey_frame(30, 20)
    drawn = draw_tracks(frame, np.zeros((0, 30, 20), bool), [], color_palette(0))
    np.testing.assert_array_equal(drawn, frame)
    assert drawn is not frame


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (3, 1)])
def test_tiny_frames(height: int, width: int) -> None:
    drawn = draw_tracks(grey_frame(height, width), np.ones((1, height, width), bool), ["dog 0.87"], color_palette(1))
    assert drawn.shape == (height, width, 3)
    assert (drawn != 128).any()


def test_each_track_needs_a_label() -> None:
    with pytest.raises(ValueError, match="zip"):
        draw_tracks(grey_frame(10, 10), np.ones((2, 10, 10), bool), ["dog"], color_palette(2))


def test_colors_are_stable_and_well_separated() -> None:
    # The first colours are part of what users see: a change must be meant.
    assert [track_color(i) for i in (0, 1, 1000)] == [(255, 38, 38), (128, 165, 255), (255, 154, 128)]
    palette = color_palette(16).astype(int)
    assert [tuple(c) for c in palette] == [track_color(i) for i in range(16)]
    distances = np.abs(palette[:, None] - palette[None]).sum(axis=-1)
    assert distances[~np.eye(16, dtype=bool)].min() >= 60
    assert color_palette(0).shape == (0, 3)


def test_drawing_touches_masks_not_frames() -> None:
    """Ten masks cost less than half of what tinting the whole frame ten times would."""
    frame, masks = grey_frame(720, 1280), np.zeros((10, 720, 1280), bool)
    for i, mask in enumerate(masks):
        mask[i * 30 + 50 : i * 30 + 350, i * 80 + 20 : i * 80 + 420] = True
    colors = color_palette(10)

    def tint_whole_frames() -> None:
        tinted = frame.astype(np.float32)
        for mask, color in zip(masks, colors, strict=True):
            tinted = np.where(mask[..., None], 0.6 * tinted + 0.4 * color, tinted)

    def least_seconds(function: Callable[[], object]) -> float:
        seconds = []
        for _ in range(5):
            start = time.thread_time()
            function()
            seconds.append(time.thread_time() - start)
        return min(seconds)

    drawing = least_seconds(lambda: draw_tracks(frame, masks, ["dog 0.87"] * 10, colors))
    assert drawing < 0.5 * least_seconds(tint_whole_frames)
