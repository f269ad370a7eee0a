"""The whole of a file, or a word: what cameras, phones and editors write, and what breaks on the way."""

import io
import os
import struct
import sys
import warnings
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from drawn_frames import BLUE, GREEN, RED, WHITE, corners, number_of, numbered, one_frame, quadrants
from PIL import Image

from clipvis_jax.errors import InputError
from clipvis_jax.media.images import read_image
from clipvis_jax.media.video_reader import FrameSelection, open_frames

CASES = Path(__file__).parents[1] / "cases" / "media"


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        list(open_frames(path, **options))
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def write_packets(path: Path, packets: list[tuple[int, bytes]], codec: str = "mjpeg", size: tuple = (64, 48)) -> Path:
    """Put compressed frames into a video, each at its place (in 25ths of a second)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p"
        for place, data in packets:
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, place, place, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    return path


def jpeg(frame: np.ndarray, exif: bytes = b"") -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "jpeg", quality=95, exif=exif)
    return file.getvalue()


def orientation_exif(orientation: int, kind: int = 3) -> bytes:
    """EXIF of the orientation and of a resolution unit that is text."""
    entries = struct.pack("<HHIHH", 0x0112, kind, 1, orientation, 0) + struct.pack("<HHI4s", 0x0128, 2, 2, b"2\0\0\0")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


# --- the cases as they came


@pytest.mark.parametrize(
    ("name", "kind", "frames", "size"),
    [
        ("timelapse.mov", "video", 6, (96, 128)),
        ("short_as_ascii.jpg", "image", 1, (60, 40)),
        ("png_bad.png", "image", 1, (40, 60)),
        ("coverfirst.mkv", "video", 20, (96, 128)),
        ("anim.webp", "video", 5, (96, 128)),
        ("anim.avif", "video", 5, (96, 128)),
        ("vp9alpha.webm", "video", 20, (96, 128)),
        ("vfr.mkv", "video", 20, (96, 128)),
        ("sar.mp4", "video", 20, (96, 144)),
    ],
)
def test_cases_are_read_whole(name: str, kind: str, frames: int, size: tuple[int, int]) -> None:
    source = open_frames(CASES / name)
    read = list(source)
    assert (source.kind, len(read), (source.height, source.width)) == (kind, frames, size)
    assert [number for number, _ in read] == list(range(frames))
    assert {frame.shape for _, frame in read} == {(*size, 3)}
    if frames > 1:
        assert len({frame.tobytes() for _, frame in read}) == frames, "a frame is repeated"


def test_empty_chunks_are_worth_a_warning() -> None:
    source = open_frames(CASES / "nulls.avi")
    with pytest.warns(UserWarning, match=r"header states 1\.20 s, but its 20 frames end at 0\.80 s"):
        assert len(list(source)) == 20


def test_a_corrupt_packet_ends_the_reading_or_is_skipped() -> None:
    assert "8 frames can be decoded" in refusal(CASES / "corrupt.avi")
    assert "or skip what cannot be decoded (on-error skip)" in refusal(CASES / "corrupt.avi")
    source = open_frames(CASES / "corrupt.avi", on_error="skip")
    with pytest.warns(UserWarning, match=r"1 frame\(s\) cannot be decoded and are missing: 8$"):
        assert [number for number, _ in source] == [*range(8), *range(9, 20)]
    assert source.skipped_frames == (8,)
    assert list(source.frame_times_s.values()) == pytest.approx([n / 25 for n in range(20) if n != 8])


def test_frames_outside_the_selection_are_not_missed() -> None:
    """Frame 8 of 20 is damaged."""
    source = open_frames(CASES / "corrupt.avi", FrameSelection(7, None, 2), on_error="skip")
    assert [number for number, _ in source] == [7, 9, 11, 13, 15, 17, 19]
    assert source.skipped_frames == ()
    with pytest.warns(UserWarning, match=r"missing: 8$"):
        message = refusal(CASES / "corrupt.avi", selection=FrameSelection(8, 9), on_error="skip")
    assert message.endswith("none of the selected frames can be decoded; select others, or copy it again")
    message = refusal(CASES / "corrupt.avi", selection=FrameSelection(20), on_error="skip")
    assert "has only 20 frame(s), so start 20 is beyond its end" in message


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.png")
    assert "1.png: is not a file" in refusal(tmp_path)


def test_times_of_a_variable_frame_rate() -> None:
    source = open_frames(CASES / "vfr.mkv", FrameSelection(9, None, 5))
    assert len(list(source)) == 3
    assert source.frame_times_s == {9: 0.36, 14: 3.56, 19: 3.76}


# --- videos


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(1, [RED, GREEN, BLUE, WHITE]), (2, [GREEN, RED, WHITE, BLUE]), (6, [BLUE, RED, WHITE, GREEN])],
)
@pytest.mark.parametrize("name", ["camera.mov", "camera.avi"])
def test_camera_pictures_in_a_video_are_turned(tmp_path: Path, name: str, orientation: int, expected: list) -> None:
    data = jpeg(quadrants(), orientation_exif(orientation))
    path = write_packets(tmp_path / name, [(i, data) for i in range(3)])
    read = [frame for _, frame in open_frames(path)]
    assert len(read) == 3
    assert corners(read[2]) == expected


def two_streams(path: Path, film: list[np.ndarray], other: list[np.ndarray], *, default: int | None) -> Path:
    """A file of two video streams, the second of which is the film."""
    with av.open(str(path), "w") as container:
        streams = []
        for index, frames in enumerate((other, film)):
            stream = container.add_stream("mpeg4", rate=25)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
            stream.disposition = av.stream.Disposition.default if index == default else 0
            streams.append(stream)
        for stream, frames in zip(streams, (other, film), strict=True):
            for array in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["two.mkv", "two.mp4", "two.mov"])
@pytest.mark.parametrize(
    ("other", "default"),
    [
        (numbered(12, 16, 16), None),  # a preview
        (numbered(12, 16, 16), 0),  # which the muxer took for the main stream
        (numbered(1, 480, 640), None),  # a large cover
        (numbered(12, 64, 64), 1),  # another angle, but the film is marked
    ],
)
def test_the_film_is_read_not_its_preview(tmp_path: Path, name: str, other: list, default: int | None) -> None:
    path = two_streams(tmp_path / name, numbered(12), other, default=default)
    source = open_frames(path)
    assert (source.height, source.width) == (48, 64)
    assert [number_of(frame) for _, frame in source] == list(range(12))


def test_of_similar_streams_the_default_is_read(tmp_path: Path) -> None:
    path = two_streams(tmp_path / "angles.mkv", numbered(12, 64, 64), numbered(12, 48, 64), default=0)
    source = open_frames(path)
    assert (source.height, source.width) == (48, 64)


def test_empty_chunks_within_a_video(tmp_path: Path) -> None:
    packets = [(i + (3 if i > 4 else 0), jpeg(frame)) for i, frame in enumerate(numbered(12))]
    source = open_frames(write_packets(tmp_path / "gap.avi", packets))
    assert [number_of(frame) for _, frame in source] == list(range(12))
    assert source.frame_times_s[5] - source.frame_times_s[4] == pytest.approx(4 / 25)


def test_a_header_that_states_more_than_is_there(tmp_path: Path) -> None:
    path = write_packets(tmp_path / "clip.mkv", [(i, jpeg(frame)) for i, frame in enumerate(numbered(12))])
    data = bytearray(path.read_bytes())
    place = data.index(b"\x44\x89\x88") + 3  # Duration, a double
    assert struct.unpack_from(">d", data, place)[0] == pytest.approx(480)
    struct.pack_into(">d", data, place, 5000.0)
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"header states 5\.00 s, but its 12 frames end at 0\.48 s"):
        assert len(list(open_frames(path))) == 12


@pytest.mark.parametrize("name", ["clip.avi", "clip.mov", "clip.mkv"])
@pytest.mark.parametrize("bad", [[0], [4], [4, 5, 9], [11]])
def test_missing_frames_are_named(tmp_path: Path, name: str, bad: list[int]) -> None:
    packets = [(i, b"\0" * 500 if i in bad else jpeg(frame)) for i, frame in enumerate(numbered(12))]
    path = write_packets(tmp_path / name, packets)
    message = refusal(path)
    assert ("no frame can be decoded" if bad == [0] else f"{bad[0]} frames can be decoded") in message
    source = open_frames(path, on_error="skip")
    named = ", ".join(map(str, bad))
    with pytest.warns(UserWarning, match=rf"{len(bad)} frame\(s\) cannot be decoded and are missing: {named}$"):
        read = list(source)
    assert [number for number, _ in read] == [i for i in range(12) if i not in bad]
    assert [number_of(frame) for _, frame in read] == [number for number, _ in read]
    assert source.skipped_frames == tuple(bad)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.avi"])
def test_a_video_cut_within_its_last_frame(tmp_path: Path, name: str) -> None:
    path = write_packets(tmp_path / name, [(i, jpeg(frame)) for i, frame in enumerate(numbered(12))])
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"\xff\xd8\xff") + 400])
    assert "11 frames can be decoded, then it ends in the middle of one" in refusal(path)
    with pytest.warns(UserWarning, match="is cut off after 11 frames"):
        assert len(list(open_frames(path, on_error="skip"))) == 11


def test_alpha_of_the_case_is_blended_with_black() -> None:
    for _, frame in open_frames(CASES / "vp9alpha.webm"):
        assert frame[:, :60].mean() > 20
        assert frame[:, 68:].max() <= 8


@pytest.mark.parametrize("tag", [{}, {"alpha_mode": "1"}])  # tags are shown in capitals
@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.webm", "libvpx"), ("a.mkv", "libvpx-vp9")])
def test_alpha_of_vpx_is_blended_with_black(tmp_path: Path, name: str, codec: str, tag: dict[str, str]) -> None:
    frame = np.zeros((64, 64, 4), np.uint8)
    frame[...] = (200, 200, 200, 255)
    frame[:, 32:, 3] = 0
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"auto-alt-ref": "0", "crf": "4", "b": "4M"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuva420p"
        stream.metadata.update(tag)
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba")))
        container.mux(stream.encode(None))
    read = [frame for _, frame in open_frames(path)]
    assert len(read) == 5
    for frame in read:
        assert np.abs(frame[32, 8].astype(int) - 200).max() < 8
        assert frame[32, 56].max() < 8


def test_lists_of_files_are_no_videos(tmp_path: Path) -> None:
    write_packets(tmp_path / "other.mov", [(i, jpeg(quadrants())) for i in range(3)])
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other.mov\n")
    (tmp_path / "list.mkv").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mov\n#EXT-X-ENDLIST\n")
    for name in ("list.mp4", "list.mkv"):
        assert "cannot be opened as a video" in refusal(tmp_path / name)
    (tmp_path / "picture").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    assert "it is of no video format that is read here" in refusal(tmp_path / "picture")


# --- images


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize(
    ("orientation", "kind", "expected"),
    [
        (6, 3, [BLUE, RED, WHITE, GREEN]),
        (6, 4, [BLUE, RED, WHITE, GREEN]),
        (6, 12, [RED, GREEN, BLUE, WHITE]),  # a double, whose place is outside
        (99, 3, [RED, GREEN, BLUE, WHITE]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning")
def test_of_odd_exif_the_orientation_counts(
    tmp_path: Path, suffix: str, orientation: int, kind: int, expected: list
) -> None:
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(quadrants()).save(path, exif=orientation_exif(orientation, kind), quality=95)
    assert corners(one_frame(path)) == expected


def pages(path: Path, count: int = 5, **options: object) -> Path:
    first, *others = [Image.fromarray(np.full((48, 64, 3), 20 + 40 * i, np.uint8)) for i in range(count)]
    first.save(path, save_all=True, append_images=others, **options)
    return path


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [(".gif", {}, 8), (".png", {}, 0), (".webp", {"lossless": True}, 0), (".avif", {"quality": 95}, 6)],
)
def test_animations_are_videos(tmp_path: Path, suffix: str, options: dict, tolerance: int) -> None:
    path = pages(tmp_path / f"animation{suffix}", duration=[100, 200, 300, 400, 500], **options)
    source = open_frames(path)
    read = list(source)
    assert (source.kind, source.expected_frames, len(read)) == ("video", 5, 5)
    assert [number for number, _ in read] == list(range(5))
    for number, frame in read:
        assert np.abs(frame.astype(int) - 20 - 40 * number).max() <= tolerance
    assert source.frame_times_s == {0: 0.0, 1: 0.1, 2: 0.3, 3: 0.6, 4: 1.0}
    assert source.fps == pytest.approx(5 / 1.5)
    part = open_frames(path, FrameSelection(1, 4, 2))
    assert [number for number, _ in part] == [1, 3]
    assert part.frame_times_s == {1: 0.1, 3: 0.6}
    assert "has only 5 frame(s), so start 5" in refusal(path, selection=FrameSelection(5))


def test_pages_of_a_tiff_are_a_video(tmp_path: Path) -> None:
    source = open_frames(pages(tmp_path / "pages.tif"))
    assert (source.kind, source.fps, source.frame_times_s) == ("video", None, {})
    assert [round(frame.mean()) for _, frame in source] == [20, 60, 100, 140, 180]


def test_a_reduced_copy_is_no_page_of_a_tiff(tmp_path: Path) -> None:
    path = tmp_path / "preview.tif"
    small = Image.fromarray(quadrants(24, 32))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(quadrants()).save(path, save_all=True, append_images=[small])
    source = open_frames(path)
    assert (source.kind, source.height) == ("image", 48)


def test_a_png_without_its_stand_in(tmp_path: Path) -> None:
    path = pages(tmp_path / "animation.png", default_image=True, duration=40)
    source = open_frames(path)
    assert [round(frame.mean()) for _, frame in source] == [60, 100, 140, 180]
    assert source.fps == 25


def test_a_preview_beside_a_jpeg_is_no_page(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    preview = Image.fromarray(quadrants(24, 32))
    Image.fromarray(quadrants()).save(path, "MPO", save_all=True, append_images=[preview])
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    assert (open_frames(path).kind, one_frame(path).shape) == ("image", (48, 64, 3))


def test_never_silently_the_first_page(tmp_path: Path) -> None:
    path = pages(tmp_path / "2.gif")
    Image.fromarray(quadrants()).save(tmp_path / "1.png")
    with pytest.raises(InputError, match=r"2\.gif: has several pages where one image is needed"):
        list(open_frames(tmp_path))
    with pytest.raises(InputError, match=r"2\.gif: has several pages"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".avif", ".jp2", ".gif", ".ppm", ".bmp", ".webp"])
def test_stills_are_images(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"still{suffix}"
    Image.fromarray(quadrants()).save(path)
    assert open_frames(path).kind == "image"
    assert corners(one_frame(path)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("name", ["download", "chat.jpg.tmp", "animation.mp4"])
@pytest.mark.parametrize(
    ("kind", "pages"), [("jpeg", 1), ("png", 2), ("webp", 2), ("gif", 2), ("tiff", 2), ("avif", 2)]
)
def test_an_image_is_known_by_its_bytes(tmp_path: Path, name: str, kind: str, pages: int) -> None:
    first, *others = (Image.fromarray(quadrants(16, number)) for number in (24, *[24] * (pages - 1)))
    others = [page.rotate(180) for page in others]
    first.save(tmp_path / name, kind, **({"save_all": True, "append_images": others} if others else {}))
    source = open_frames(tmp_path / name)
    assert (source.kind, len(list(source))) == ("video" if others else "image", pages)


def test_heic_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "photo.jpg"  # as phones name them when they send them
    path.write_bytes(b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf" + bytes(100))
    assert "is a HEIC picture, which needs the package pillow-heif" in refusal(path)


@pytest.mark.parametrize(
    ("name", "size"), [("photo.heic", (1024, 768)), ("photo.mov", (768, 1024)), ("photo", (100, 60))]
)
def test_heic_is_read_whole(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    path = tmp_path / name
    Image.fromarray(quadrants(*size)).save(path, "heif", quality=90)
    assert open_frames(path).kind == "image"
    assert one_frame(path).shape == (*size, 3)
    assert corners(one_frame(path)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "picture.tif"])
def test_postscript_is_not_run(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(quadrants()).save(tmp_path / name, "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    assert "is not an image that can be read" in refusal(tmp_path / name)


def test_a_header_that_asks_for_much_memory_is_refused(tmp_path: Path) -> None:
    data = (CASES / "sar.mp4").read_bytes()
    place = data.index(b"stts") + 8  # how many durations there are
    (tmp_path / "many.mp4").write_bytes(data[:place] + b"\x12\0\0\0" + data[place + 4 :])
    assert "cannot be opened as a video (Cannot allocate memory)" in refusal(tmp_path / "many.mp4")


def test_frames_larger_than_allowed_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pages = [Image.fromarray(pixels), Image.fromarray(np.zeros((40, 30, 3), np.uint8))]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    for name, allowed, size in (("a.png", 599, "30 x 20"), ("a.tiff", 1199, "30 x 40")):
        message = refusal(tmp_path / name, max_pixels=allowed)
        expected = f": is {size} pixels, more than {allowed:,}; shrink it or allow more (max-pixels)"
        assert message == str(tmp_path / name) + expected
    assert len(list(open_frames(tmp_path / "a.png", max_pixels=600))) == 1
    assert "more than 100; shrink it" in refusal(CASES / "sar.mp4", max_pixels=100)


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (10_000, 8_001)).save(tmp_path / "large.png")
    assert "is 10000 x 8001 pixels, more than 80,000,000" in refusal(tmp_path / "large.png")


def test_a_bomb_of_pixels_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    Image.fromarray(quadrants()).save(path)
    data = path.read_bytes()
    chunk = b"IHDR" + header
    path.write_bytes(data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:])
    assert "has more than 179 million pixels; make it smaller" in refusal(path)


# --- bytes at random


ROUNDS = 40


def read_or_refuse(path: Path) -> str:
    """Read a file's frames: each is right in shape, or the error is one line that names the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            source = open_frames(path, on_error="skip")
            for _, frame in source:
                assert frame.shape == (source.height, source.width, 3)
        except InputError as error:
            message = str(error)
        else:
            return "read"
    assert message.startswith(str(path))
    assert "\n" not in message
    return "refused"


def fuzz_exif(folder: Path, rounds: int, seed: int = 0) -> dict[str, int]:
    """Pictures whose EXIF is broken at random: the pixels are fine, so all must be read."""
    rng = np.random.default_rng(seed)
    outcomes = {"read": 0, "refused": 0}
    frame = quadrants(16, 16)
    for number in range(rounds):
        exif = bytearray(orientation_exif(6) + rng.bytes(40))
        for place in rng.integers(6, len(exif), rng.integers(1, 12)):
            exif[place] = rng.integers(256)
        suffix = (".jpg", ".png", ".webp")[number % 3]
        path = folder / f"photo{suffix}"
        Image.fromarray(frame).save(path, exif=bytes(exif[: rng.integers(6, len(exif))]))
        outcomes[read_or_refuse(path)] += 1
    return outcomes


def fuzz_containers(folder: Path, rounds: int, seed: int = 0) -> dict[str, int]:
    """Videos and animations with bytes changed or put in, extreme numbers, or cut: read, or refused in one line."""
    rng = np.random.default_rng(seed)
    outcomes = {"read": 0, "refused": 0}
    files = sorted(CASES.iterdir())
    for number in range(rounds):
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        place = int(rng.integers(len(data)))
        if number % 4 == 0:
            for changed in rng.integers(0, len(data), rng.integers(1, 20)):
                data[changed] = rng.integers(256)
        elif number % 4 == 1:
            del data[max(place, 1) :]
        elif number % 4 == 2:
            data[place:place] = rng.bytes(int(rng.integers(1, 64)))
        else:
            data[place : place + 4] = rng.choice([0, 1, 2**28, 2**31 - 1, 2**32 - 1]).astype(">u4").tobytes()
        path = folder / f"broken{file.suffix}"
        path.write_bytes(data)
        outcomes[read_or_refuse(path)] += 1
    return outcomes


def test_random_exif_never_hides_a_picture(tmp_path: Path) -> None:
    assert fuzz_exif(tmp_path, ROUNDS) == {"read": ROUNDS, "refused": 0}


def test_random_damage_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    outcomes = fuzz_containers(tmp_path, ROUNDS)
    assert sum(outcomes.values()) == ROUNDS
    assert min(outcomes.values()) > 0
