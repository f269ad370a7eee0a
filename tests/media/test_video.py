"""Videos, images and folders as sources of frames; what cannot be used is one line."""

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from drawn_frames import BLUE, GREEN, RED, WHITE, corners, number_of, numbered, one_frame, quadrants
from PIL import Image

from clipvis_jax.errors import InputError
from clipvis_jax.media.video_reader import FrameSelection, open_frames


def encode(
    path: Path,
    frames: list[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    *,
    rate: int | Fraction = 25,
    rotation: tuple[float, bool, bool] | None = None,
    sound_s: float = 0,
    movflags: str = "faststart",
    first_pts: int = 0,
) -> Path:
    options = {"movflags": movflags} if movflags and path.suffix == ".mp4" else {}
    if first_pts < 0:
        options["avoid_negative_ts"] = "disabled"
    with av.open(str(path), "w", options=options) as container:
        if sound_s:  # before the pictures, so that they are not stream 0
            sound = container.add_stream("aac", rate=48000, layout="mono")
        stream = container.add_stream(codec, rate=rate, options={"g": "5"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.bit_rate = 4_000_000
        if rotation is not None:
            stream.set_display_rotation(*rotation)
        for i in range(int(sound_s * 48000 / 1024)):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 48000, i * 1024
            container.mux(sound.encode(silence))
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24" if array.shape[2] == 3 else "rgba")
            frame.pts, frame.time_base = i + first_pts, 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound_s:
            container.mux(sound.encode(None))
    return path


def mux_images(path: Path, images: list[Path], codec: str, pix_fmt: str) -> Path:
    """Put compressed images into a video as they are."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        with Image.open(images[0]) as first:
            stream.width, stream.height = first.size
        stream.pix_fmt = pix_fmt
        for i, image in enumerate(images):
            packet = av.Packet(image.read_bytes())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, i, i, Fraction(1, 25)
            container.mux(packet)
    return path


def cut(path: Path, fraction: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def save(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def message_of(path: Path, selection: FrameSelection | None = None) -> str:
    """The error that opening or reading raises, which must be one line that names the path."""
    with pytest.raises(InputError) as caught:
        list(open_frames(path, selection))
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def advised_end(message: str) -> int:
    return int(re.search(r"end the selection at frame (\d+)", message)[1])


# --- selection


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"start": -1}, "start -1"),
        ({"end": 0}, "end 0"),
        ({"start": 5, "end": 5}, "end 5"),
        ({"every": 0}, "every 0"),
        ({"every": -2}, "every -2"),
    ],
)
def test_impossible_selections_name_their_option(arguments: dict[str, int], option: str) -> None:
    with pytest.raises(InputError, match=option):
        FrameSelection(**arguments)


SELECTIONS = [(0, None, 1), (3, None, 1), (0, 4, 1), (2, 9, 3), (1, 100, 4), (11, None, 5)]


@pytest.mark.parametrize(("start", "end", "every"), SELECTIONS)
@pytest.mark.parametrize("kind", ["video", "folder"])
def test_selected_frames_are_the_right_ones(tmp_path: Path, kind: str, start: int, end: int, every: int) -> None:
    if kind == "video":
        path = encode(tmp_path / "clip.mp4", numbered(12))
    else:
        path = tmp_path
        for i, frame in enumerate(numbered(12)):
            save(path / f"{i}.png", frame)
    source = open_frames(path, FrameSelection(start, end, every))
    expected = list(range(12))[start:end:every]
    for _ in range(2):  # a source can be read twice
        frames = list(source)
        assert [number for number, _ in frames] == expected
        assert [number_of(frame) for _, frame in frames] == expected
    assert source.expected_frames == len(expected)


# --- videos


def test_a_video_describes_itself(tmp_path: Path) -> None:
    source = open_frames(str(encode(tmp_path / "clip.mp4", numbered(10), rate=Fraction(30000, 1001))))
    assert (source.name, source.kind) == ("clip.mp4", "video")
    assert (source.height, source.width) == (48, 64)
    assert source.fps == 30000 / 1001
    assert source.expected_frames == 10


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("clip.mkv", "libx264", "yuv420p"),
        ("clip.webm", "libvpx-vp9", "yuv420p"),
        ("clip.avi", "mjpeg", "yuvj420p"),
        ("clip.ts", "libx264", "yuv420p"),
        ("clip.mov", "mpeg4", "yuv420p"),
        ("clip.flv", "libx264", "yuv420p"),
        ("clip.h264", "libx264", "yuv420p"),
        ("clip.gif", "gif", "rgb8"),
        ("10bit.mkv", "libx264", "yuv420p10le"),
        ("444.mkv", "libx264", "yuv444p"),
        ("grey.mkv", "ffv1", "gray"),
        ("grey16.mkv", "ffv1", "gray16le"),
    ],
)
def test_formats_and_codecs(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    source = open_frames(encode(tmp_path / name, numbered(12), codec, pix_fmt))
    frames = list(source)
    assert [number for number, _ in frames] == list(range(12))
    # GIF has 3 bits per channel here, which the brightness does not fit into.
    if codec != "gif":
        assert [number_of(frame) for _, frame in frames] == list(range(12))
    assert {frame.shape for _, frame in frames} == {(48, 64, 3)}
    assert source.fps == 25
    # FLV states the time of the last frame in milliseconds, from 0 and not from the first one.
    assert source.expected_frames in ((14,) if name == "clip.flv" else (12, None))


def test_ten_bits_and_full_range_are_scaled(tmp_path: Path) -> None:
    shades = np.repeat(np.arange(0, 256, 4, dtype=np.uint8), 8)
    frame = np.broadcast_to(shades[None, :, None], (32, 512, 3)).copy()
    for name, codec, pix_fmt in [("a.mkv", "ffv1", "yuv444p10le"), ("b.avi", "mjpeg", "yuvj444p")]:
        read = one_frame(encode(tmp_path / name, [frame], codec, pix_fmt))
        assert np.abs(read.astype(int) - frame).max() <= 1, name


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        ((0.0, False, False), [RED, GREEN, BLUE, WHITE]),
        ((90.0, False, False), [GREEN, WHITE, RED, BLUE]),
        ((-90.0, False, False), [BLUE, RED, WHITE, GREEN]),
        ((180.0, False, False), [WHITE, BLUE, GREEN, RED]),
        ((0.0, True, False), [GREEN, RED, WHITE, BLUE]),
        ((0.0, False, True), [BLUE, WHITE, RED, GREEN]),
        ((90.0, True, False), [WHITE, GREEN, BLUE, RED]),
        ((90.0, False, True), [RED, BLUE, GREEN, WHITE]),
    ],
)
def test_phone_videos_are_turned(tmp_path: Path, rotation: tuple[float, bool, bool], expected: list) -> None:
    path = encode(tmp_path / "phone.mp4", [quadrants()] * 3, rotation=rotation)
    source = open_frames(path)
    size = (64, 48) if abs(rotation[0]) == 90 else (48, 64)
    assert (source.height, source.width) == size
    for _, frame in source:
        assert frame.shape[:2] == size
        assert frame.flags.c_contiguous
        assert corners(frame) == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (33, 47)])
def test_tiny_and_odd_videos(tmp_path: Path, size: tuple[int, int]) -> None:
    frame = np.full((*size, 3), (200, 100, 50), np.uint8)
    read = one_frame(encode(tmp_path / "tiny.mkv", [frame], "ffv1", "bgr0"))
    np.testing.assert_array_equal(read, frame)


def test_transparent_videos_are_blended_with_black(tmp_path: Path) -> None:
    frame = np.zeros((16, 16, 4), np.uint8)
    frame[:8] = (200, 100, 50, 255)
    frame[8:] = (200, 100, 50, 51)
    read = one_frame(encode(tmp_path / "alpha.mov", [frame], "qtrle", "argb"))
    assert tuple(read[0, 0]) == (200, 100, 50)
    assert tuple(read[8, 0]) == (40, 20, 10)

    palette = Image.fromarray(np.zeros((16, 16), np.uint8)).convert("P")
    palette.putpalette([200, 100, 50])
    palette.save(tmp_path / "palette.png", transparency=bytes([51]))
    mux_images(tmp_path / "palette.mov", [tmp_path / "palette.png"], "png", "pal8")
    assert tuple(one_frame(tmp_path / "palette.mov")[0, 0]) == (40, 20, 10)


def test_sound_before_and_after_the_pictures(tmp_path: Path) -> None:
    # Longer sound must not look like a cut file, and the decoder is emptied although it is not of stream 0.
    path = encode(tmp_path / "sound.mkv", numbered(12), sound_s=3)
    assert [number_of(frame) for _, frame in open_frames(path)] == list(range(12))


@pytest.mark.parametrize(
    ("name", "movflags", "first_pts", "hidden"),
    [
        # An mp4 hides frames before time 0 by an edit list, as videos do that are trimmed on a phone.
        ("clip.mp4", "faststart", -4, 4),
        ("clip.mp4", "frag_keyframe+empty_moov+delay_moov", -4, 0),
        ("clip.mp4", "faststart", 500, 0),
        ("clip.mkv", "", 500, 0),
    ],
)
def test_early_and_late_starts_are_no_cut(
    tmp_path: Path, name: str, movflags: str, first_pts: int, hidden: int
) -> None:
    source = open_frames(encode(tmp_path / name, numbered(20), movflags=movflags, first_pts=first_pts))
    assert [number_of(frame) for _, frame in source] == list(range(hidden, 20))
    if name == "clip.mp4":  # a Matroska header counts from time 0
        assert source.expected_frames == 20 - hidden


def test_frames_at_uneven_distances_are_no_cut(tmp_path: Path) -> None:
    path = tmp_path / "uneven.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for i, array in enumerate(numbered(6)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = i * i, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert len(list(open_frames(path))) == 6


def test_names_that_ffmpeg_would_take_for_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "12:30.mkv", numbered(3))
    monkeypatch.chdir(tmp_path)
    assert len(list(open_frames("12:30.mkv"))) == 3


def test_only_wanted_frames_are_decoded(tmp_path: Path) -> None:
    path = cut(encode(tmp_path / "clip.mp4", numbered(30)), 0.7)
    assert [number for number, _ in open_frames(path, FrameSelection(2, 6))] == [2, 3, 4, 5]


# --- videos that cannot be used


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.webm", "clip.avi"])
@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_a_cut_video_tells_where_it_ends(tmp_path: Path, name: str, fraction: float) -> None:
    codec = {".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(Path(name).suffix, "libx264")
    path = cut(encode(tmp_path / name, numbered(60), codec), fraction)
    seen = []
    with pytest.raises(InputError, match=f"^{path}: is .*cut off.* end the selection at frame ") as caught:
        seen.extend(number for number, _ in open_frames(path))
    assert 60 * fraction / 2 <= len(seen) < 60
    end = advised_end(str(caught.value))
    assert end == len(seen)
    # The advice works.
    assert len(list(open_frames(path, FrameSelection(end=end)))) == end


def test_a_video_cut_within_its_first_frame(tmp_path: Path) -> None:
    path = cut(encode(tmp_path / "clip.mp4", [numbered(1, 256, 256)[0]]), 0.5)
    assert "no frame can be decoded" in message_of(path)


def test_a_video_whose_index_is_cut_off(tmp_path: Path) -> None:
    path = cut(encode(tmp_path / "clip.mp4", numbered(10), movflags=""), 0.7)
    assert "cannot be opened as a video" in message_of(path)


def test_damage_in_the_middle_names_the_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", numbered(30))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    path.write_bytes(data)
    message = message_of(path)
    assert "frames can be decoded, then comes 'Invalid data found when processing input'" in message
    assert 5 < advised_end(message) < 20


def test_missing_empty_and_wrong_files(tmp_path: Path) -> None:
    assert "No such file or directory" in message_of(tmp_path / "missing.mp4")
    (tmp_path / "empty.mp4").touch()
    assert "is empty (0 bytes)" in message_of(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("This is no video.\n" * 50)
    assert "cannot be opened as a video" in message_of(tmp_path / "text.mp4")
    assert "Not a directory" in message_of(tmp_path / "text.mp4" / "clip.mp4")
    assert "is neither a file nor a folder" in message_of(Path("/dev/null"))


def test_sound_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    assert "has no video stream" in message_of(path)


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(quadrants(), format="rgb24")))
        container.mux(cover.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    assert "has no video stream" in message_of(path)


def test_a_video_without_frames(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.avi", numbered(3), "mpeg4")
    data = path.read_bytes()
    # The header stays; the frames' list is replaced by nothing.
    path.write_bytes(data[: data.index(b"movi") + 4])
    assert "no frame can be decoded" in message_of(path)


def test_an_unknown_codec(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mkv", numbered(3))
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    assert "has a video codec that FFmpeg does not know" in message_of(path)


@pytest.mark.parametrize("start", [12, 500])
def test_a_start_beyond_the_end_tells_how_long_the_video_is(tmp_path: Path, start: int) -> None:
    path = encode(tmp_path / "clip.mp4", numbered(12))
    assert f"has only 12 frame(s), so start {start}" in message_of(path, FrameSelection(start=start))


def test_a_video_that_changes_its_size(tmp_path: Path) -> None:
    # JPEG frames carry their own size, so the container need not notice.
    first, other = save(tmp_path / "1.jpg", quadrants(48, 64)), save(tmp_path / "2.jpg", quadrants(32, 64))
    path = mux_images(tmp_path / "clip.avi", [first] * 4 + [other] * 2, "mjpeg", "yuvj420p")
    message = message_of(path)
    assert "frame 4 is 64 x 32 pixels, but the first one is 64 x 48" in message
    assert [number for number, _ in open_frames(path, FrameSelection(end=4))] == [0, 1, 2, 3]


# --- images and folders


def test_a_folder_in_natural_order(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    (folder / "7.jpg").mkdir(parents=True)
    names = ["1.PNG", "2.jpg", "10.jpeg", "10a.bmp", "11.webp", "100.tif"]
    for i, name in enumerate(reversed(names)):
        save(folder / name, np.full((8, 8, 3), 200 - i * 40, np.uint8))
    save(folder / ".0.png", quadrants())
    (folder / "notes.txt").write_text("Not a frame.")
    source = open_frames(folder)
    assert (source.name, source.kind, source.fps) == ("frames", "folder", None)
    assert (source.height, source.width, source.expected_frames) == (8, 8, 6)
    assert [number for number, _ in source] == list(range(6))
    assert [round(frame.mean() / 40) for _, frame in source] == [0, 1, 2, 3, 4, 5]


def test_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "1.png", quadrants())
    monkeypatch.chdir(tmp_path)
    assert open_frames(".").name == tmp_path.name


def test_an_image_is_a_source_of_one_frame(tmp_path: Path) -> None:
    path = save(tmp_path / "image.png", quadrants())
    source = open_frames(path)
    assert (source.name, source.kind, source.fps, source.expected_frames) == ("image.png", "image", None, 1)
    assert (source.height, source.width) == (48, 64)
    np.testing.assert_array_equal(one_frame(path), quadrants())


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [RED, GREEN, BLUE, WHITE]),
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (6, [BLUE, RED, WHITE, GREEN]),
        (8, [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_images_are_turned_by_their_exif_orientation(tmp_path: Path, orientation: int, expected: list) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "photo.jpg", quadrants(), exif=exif, quality=95)
    source = open_frames(path)
    assert (source.height, source.width) == ((64, 48) if orientation >= 5 else (48, 64))
    assert corners(one_frame(path)) == expected


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    grey = np.array([[0, 255, 256, 0x8000, 65535]], np.uint16)
    read = one_frame(save(tmp_path / f"grey{suffix}", grey))
    assert read[0].tolist() == [[0] * 3, [0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [("L", ".png", 0), ("1", ".png", 0), ("P", ".png", 0), ("CMYK", ".jpg", 8), ("CMYK", ".tif", 1)],
)
def test_modes_become_rgb(tmp_path: Path, mode: str, suffix: str, tolerance: int) -> None:
    frame = np.zeros((16, 16, 3), np.uint8)
    frame[:8] = 255
    read = one_frame(save(tmp_path / f"image{suffix}", frame, mode))
    assert read.shape == (16, 16, 3)
    assert np.abs(read.astype(int) - frame).max() <= tolerance


def test_transparent_images_are_blended_with_black(tmp_path: Path) -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 51], [200, 100, 50, 0]]], np.uint8)
    blended = [[200, 100, 50], [40, 20, 10], [0, 0, 0]]
    assert one_frame(save(tmp_path / "rgba.png", rgba))[0].tolist() == blended
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode=None).convert("P")
    palette.putpalette([200, 100, 50, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=bytes([51, 255]))
    assert one_frame(tmp_path / "palette.png")[0].tolist() == [[40, 20, 10], [10, 20, 30]]


def test_one_pixel(tmp_path: Path) -> None:
    path = save(tmp_path / "pixel.png", np.array([[[1, 2, 3]]], np.uint8))
    assert one_frame(path).tolist() == [[[1, 2, 3]]]


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("This is no image.")
    assert "is not an image that can be read" in message_of(text)
    half = cut(save(tmp_path / "half.jpg", numbered(1)[0]), 0.5)
    assert "cannot be read as an image (image file is truncated" in message_of(half)
    half_png = cut(save(tmp_path / "half.png", numbered(1)[0]), 0.5)
    assert "cannot be read as an image" in message_of(half_png)
    floats = save(tmp_path / "floats.tif", np.zeros((4, 4), np.float32))
    assert "has 32-bit pixels of unknown range" in message_of(floats)
    (tmp_path / "empty.png").touch()
    assert "is empty (0 bytes)" in message_of(tmp_path / "empty.png")
    image = save(tmp_path / "image.png", quadrants())
    assert "has only 1 frame(s), so start 1" in message_of(image, FrameSelection(start=1))


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    assert "folder is empty" in message_of(folder)
    (folder / "notes.txt").touch()
    assert "folder holds no images" in message_of(folder)
    for i in range(4):
        save(folder / f"{i}.png", quadrants())
    assert "has only 4 frame(s), so start 9" in message_of(folder, FrameSelection(start=9))
    (folder / "2.png").write_text("This is no image.")
    with pytest.raises(InputError, match=r"frames/2.png: is not an image"):
        list(open_frames(folder))
    save(folder / "2.png", quadrants(64, 48))
    with pytest.raises(InputError, match=r"frames/2.png: frame 2 is 48 x 64 pixels, .* is 64 x 48;"):
        list(open_frames(folder))
    (folder / "2.png").unlink()
    (folder / "2.png").symlink_to("gone.png")
    with pytest.raises(InputError, match=r"frames/2.png: cannot be read as an image \(.*No such file"):
        list(open_frames(folder))
