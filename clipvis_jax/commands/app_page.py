"""The page of ``clipvis app``, in gradio."""

import asyncio
import functools
import html
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
from gradio import processing_utils
from gradio.utils import get_upload_folder

from clipvis_jax.commands import app_job
from clipvis_jax.commands.app_job import FILES, Job, Limits, Tell
from clipvis_jax.errors import InputError
from clipvis_jax.inference.segmenter import Background, Segmenter

KEPT_S = 3600
"""Seconds for which files and results are kept."""
_PORTS = range(7860, 7960)
_QUEUE = 32
"""How many may wait; more are told to come again."""
_SESSIONS = 200
"""Results kept at a time."""
_COLUMNS = ["track", "name", "score", "frames"]
_CSS = """
.timeline { display: grid; gap: 3px; max-height: 16em; overflow-y: auto; }
.timeline .track { display: grid; grid-template-columns: 9em 1fr; gap: 8px; align-items: center; }
.timeline span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-size: 0.85em; }
.timeline svg { width: 100%; height: 12px; border-radius: 3px; background: var(--background-fill-secondary); }
"""
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; frame-ancestors 'self'"
)
"""What the browser may load: nothing from elsewhere."""
_USED = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|assets/.*|static/.*)?|"
    r"/gradio_api/(info|app_id|startup-events|theme\.css|heartbeat/\w+|upload|upload_progress|file=/.*|call/.*|"
    r"queue/(join|data|status)|cancel|reset)",
    re.DOTALL,
)
"""What the page and gradio's client ask for; gradio has more, some of which fetches, runs and keeps things."""


def make_page(
    segmenter: Segmenter, *, scratch: Path, limits: Limits, example: tuple[Path, str] | None = None
) -> gr.Blocks:
    """Make the page.

    Args:
        segmenter: The model.
        scratch: Folder for files of jobs.
        limits: What is taken in.
        example: A video and the class names to try on it.
    """
    # It would fetch files that a client names by an address.
    processing_utils.async_ssrf_protected_download = _refuse

    def answering(function: Callable[..., Any]) -> Callable[..., Any]:
        """Tell what is wrong with an input in one line, in which nothing is HTML or a path of this machine."""

        @functools.wraps(function)
        def answer(*arguments: Any, **named: Any) -> Any:
            try:
                return function(*arguments, **named)
            except (InputError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else None
                message = app_job.without_paths(str(reason or error), scratch)
                raise gr.Error(html.escape(message, quote=False), print_exception=False) from None

        return answer

    def job_or_error(job: Job | None) -> Job:
        if job is None:
            raise InputError("nothing is segmented yet, or it was deleted after an hour; segment it first")
        return job

    @contextmanager
    def output_folder() -> Iterator[Path]:
        """Make a folder where gradio has its own files: what lies elsewhere it would copy there, to be deleted."""
        app_job.check_space(scratch, limits)
        Path(get_upload_folder()).mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=get_upload_folder()))
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # gradio deletes only what it was given
            raise

    def named(job: Job) -> tuple[Job, str, Any]:
        result = job.result
        text = (
            f"{len(result.best().tracks)} tracks in {result.num_frames} frames of {result.width}x{result.height} pixels"
        )
        if result.background:
            text += f"; {len(result.background)} background names took part"
        if skipped := len(job.facts.get("skipped_frames", ())):
            text += f"; {skipped} damaged frames were left out"
        return job, text, gr.update(choices=job.found(), value=[])

    @answering
    def segment(
        upload: str | None,
        words: str,
        others: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (as gradio wants it)
    ) -> tuple[Job, str, Any]:
        if upload is None:
            raise InputError("no video given; choose one, or take the example")
        names = app_job.read_words(words)
        job = app_job.segment(
            segmenter, Path(upload), names, background(others), scratch=scratch, limits=limits, tell=teller(progress)
        )
        return named(job)

    @answering
    def rename(job: Job | None, words: str, others: bool) -> tuple[Job, str, Any]:
        return named(app_job.rename(segmenter, job_or_error(job), app_job.read_words(words), background(others)))

    @answering
    def tracks(job: Job | None, min_score: float, hidden: list[str]) -> tuple[Any, str, Any]:
        result = job_or_error(job).shown(min_score, hidden)
        rows = app_job.table(result)
        choices = [(f"{track_id} {name}", track_id) for track_id, name, *_ in rows]
        return rows, app_job.timeline(result), gr.update(choices=choices, value=choices[0][1] if choices else None)

    @answering
    def overlay(
        job: Job | None,
        min_score: float,
        hidden: list[str],
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, Any]:
        job = job_or_error(job)
        with output_folder() as folder:
            path = str(app_job.draw(job, job.shown(min_score, hidden), folder, teller(progress)))
        shown = gr.update(value=path, visible=True), gr.update(value=None, visible=False)
        return shown[::-1] if job.is_image else shown

    @answering
    def track(
        job: Job | None, min_score: float, hidden: list[str], track_id: int | None
    ) -> tuple[list[tuple[Any, str]], str]:
        if track_id is None:
            return [], ""
        result = job_or_error(job).shown(min_score, hidden)
        near = [f"{other} {name} ({cosine:.2f})" for other, name, cosine in app_job.neighbours(result, track_id)]
        text = f"Looks most like track {', '.join(near)}" if near else ""
        return app_job.cut_outs(job_or_error(job), result, track_id), html.escape(text)

    @answering
    def download(job: Job | None, min_score: float, hidden: list[str], kinds: list[str]) -> list[str]:
        job = job_or_error(job)
        with output_folder() as folder:
            return [str(path) for path in app_job.write_files(job, job.shown(min_score, hidden), kinds, folder)]

    with gr.Blocks(title="clipvis", analytics_enabled=False, delete_cache=(60, KEPT_S), fill_width=True) as page:
        state = gr.State(None, time_to_live=KEPT_S)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                upload = gr.File(label="Video, picture, or a zip of a folder of frames", height=140)
                words = gr.Textbox(
                    label="Class names, one per line", placeholder="dog, puppy\nkettle", lines=3, max_lines=12,
                    info="Commas separate synonyms.",
                )  # fmt: skip
                others = gr.Checkbox(
                    True,
                    label="Background names",
                    info="Other things may be seen; without, all that is found is one of yours.",
                )
                with gr.Row():
                    start = gr.Button("Segment", variant="primary")
                    again = gr.Button("Change the names")
                if example is not None:
                    gr.Button("Take the example clip").click(
                        lambda: (str(example[0]), example[1]), None, [upload, words], api_visibility="private"
                    )
                text = gr.Markdown()
            with gr.Column(scale=4, min_width=320):
                video = gr.Video(label="Overlay", autoplay=True, loop=True, height=420, buttons=["download"])
                image = gr.Image(label="Overlay", visible=False, height=420, buttons=["download", "fullscreen"])
                bars = gr.HTML()
                chosen = gr.Dropdown(label="Track")
                cuts = gr.Gallery(label="Crops", columns=4, height=270, object_fit="contain", format="png")
                near = gr.HTML()
            with gr.Column(scale=3, min_width=320):
                score = gr.Slider(app_job.LOWEST_SCORE, 1, value=0.2, step=0.01, label="Lowest score")
                hidden = gr.CheckboxGroup(label="Hide classes")
                rows = gr.Dataframe(
                    headers=_COLUMNS,
                    datatype=["number", "str", "str", "number"],
                    column_widths=["18%", "42%", "18%", "22%"],
                    label="Tracks",
                    interactive=False,
                    wrap=True,
                    max_height=320,
                )
                with gr.Accordion("Download", open=False):
                    kinds = gr.CheckboxGroup(list(FILES), value=list(FILES)[:4], label="Files")
                    make = gr.Button("Make the files")
                    files = gr.File(label="Files", interactive=False)

        what = [state, score, hidden]
        network: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "network",
            "show_progress_on": [video, image],
        }
        drawing: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "drawing"}
        private = {"api_visibility": "private"}
        named_outputs = [state, text, hidden]
        found = [
            start.click(segment, [upload, words, others], named_outputs, api_name="segment", **network),
            again.click(rename, [state, words, others], named_outputs, api_name="rename", **drawing),
        ]
        newest = {"trigger_mode": "always_last"}
        listed = [event.success(tracks, what, [rows, bars, chosen], **private) for event in found]
        listed += [
            trigger(tracks, what, [rows, bars, chosen], show_progress="hidden", **newest, **private)
            for trigger in (score.release, hidden.input)
        ]
        for event in listed:
            event.success(overlay, what, [video, image], **newest, **drawing, **private)
        # Not chosen.change: another video may have a track of the same number.
        for trigger in (
            *(event.success for event in listed),
            rows.select(_track_of, None, chosen, **private).success,
            chosen.input,
        ):
            trigger(track, [*what, chosen], [cuts, near], show_progress="minimal", **newest, **drawing, **private)
        make.click(download, [*what, kinds], files, api_name="download", **drawing)
    return page.queue(max_size=_QUEUE, default_concurrency_limit=4, api_open=False)


def free_port(host: str, port: int | None) -> int:
    """Return the port to listen on: the one that is asked for, or a free one.

    Raises:
        InputError: It cannot be had, or the host is no address of this machine.
    """

    def bind(host: str, port: int) -> None:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)

    host = host.strip("[]")
    try:
        bind(host, 0)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--host {host}: cannot be listened on ({_reason(error)}); give an address of this machine"
        ) from error
    for candidate in _PORTS if port is None else [port]:
        try:
            bind(host, candidate)
            bind("127.0.0.1", candidate)  # gradio looks there
        except OSError as error:
            failure = error
        else:
            return candidate
    raise InputError(f"--port {candidate}: cannot be listened on ({_reason(failure)}); choose another") from failure


def launch(page: gr.Blocks, host: str, port: int, *, scratch: Path, limits: Limits) -> str:
    """Serve a page in other threads; returns its address.

    Args:
        page: The page.
        host: Address to listen on.
        port: See ``free_port``.
        scratch: Folder for files, see ``make_page``.
        limits: What is taken in.

    Raises:
        InputError: Somebody else has taken the port meanwhile.
    """
    host = host.strip("[]")
    try:
        _, url, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            footer_links=["api"],
            max_file_size=limits.megabytes * 10**6,
            state_session_capacity=_SESSIONS,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=_CSS,
            app_kwargs={"middleware": [(_Gate, (), {"scratch": scratch, "limits": limits})]},
        )
    except OSError as error:
        raise InputError(f"--port {port}: is in use; choose another") from error
    return url


class _Gate:
    """Middleware: what the page does not use is closed, and the browser loads nothing from elsewhere."""

    def __init__(self, app: Any, scratch: Path, limits: Limits) -> None:
        self._app, self._scratch, self._limits = app, scratch, limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", _POLICY.encode())]
            await send(message)

        async def refuse(status: int, reason: str) -> None:
            while (await receive()).get("more_body"):  # a client that still sends would not hear the answer
                pass
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": reason.encode()})

        if scope["type"] == "http":
            if not _USED.fullmatch(scope["path"]):
                return await refuse(403, "is not part of this page")
            if scope["path"] == "/gradio_api/upload":
                length = dict(scope["headers"]).get(b"content-length", b"")
                # gradio measures every file of an upload, but takes a thousand of them.
                if not length.isdigit() or int(length) > (self._limits.megabytes + 1) * 10**6:
                    return await refuse(413, f"give one file of at most {self._limits.megabytes} MB")
                try:
                    await asyncio.to_thread(app_job.check_space, self._scratch, self._limits)
                except InputError as error:
                    return await refuse(507, str(error))
        return await self._app(scope, receive, send_with_policy)


async def _refuse(*_: object, **__: object) -> NoReturn:
    raise gr.Error("give a file, not an address", print_exception=False)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def background(others: bool) -> Background:
    """Return what stands for background names."""
    return "auto" if others else ()


def teller(progress: gr.Progress) -> Tell:
    """Hand progress on to the page."""
    return lambda done, total, text: progress((done, total), desc=text, unit="frames")


def _track_of(event: gr.SelectData) -> int:
    return int(event.row_value[0])
