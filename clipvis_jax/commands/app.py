"""``clipvis app``."""

import dataclasses
import os
import signal
from pathlib import Path
from threading import Event
from typing import Annotated

from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.errors import InputError
from clipvis_jax.io.files import scratch_folder
from clipvis_jax.io.terminal import print_lines


@dataclasses.dataclass(frozen=True)
class App:
    """Serve a page on which videos are segmented, and tracks renamed, looked at and downloaded.

    Opens in a browser, on a machine without a network too; needs the extra 'app'. Everybody sees their own
    results alone. Files are deleted after an hour, and when the command ends (Ctrl-C).

    For example:
      clipvis app
      clipvis app --model model --port 8080
    """

    model: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: the bundled one)")] = None
    """Model folder, made by 'clipvis convert', an archive of 'clipvis pack', or hf://org/name."""
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets everybody in who reaches this machine."""
    port: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: a free one from 7860 on)")] = None
    """Port to listen on."""
    max_megabytes: Annotated[int, arg(metavar="N")] = 200
    """Refuse larger uploads."""
    max_frames: Annotated[int, arg(metavar="N")] = 600
    """Refuse longer videos; larger ones than Full HD may have fewer frames."""

    def run(self) -> None:
        """Run ``clipvis app`` until Ctrl-C or SIGTERM.

        Raises:
            InputError: gradio is not installed, or the model or the address cannot be used.
        """
        if self.port is not None and not 1 <= self.port <= 65535:
            raise InputError(f"--port {self.port}: must be between 1 and 65535")
        if self.max_megabytes < 1 or self.max_frames < 1:
            raise InputError("--max-megabytes and --max-frames: must be 1 or more")
        with scratch_folder() as scratch:
            # gradio reads them when it is imported.
            os.environ |= {
                "GRADIO_ANALYTICS_ENABLED": "False",
                "GRADIO_RUN_HISTORY": "False",
                "GRADIO_TEMP_DIR": str(scratch / "files"),
            }
            with stopping_at_once():  # which leaves an empty folder for the next command to remove
                try:
                    from clipvis_jax.commands.app_page import free_port, launch, make_page
                except ModuleNotFoundError as error:
                    if error.name != "gradio":
                        raise
                    raise InputError("clipvis app needs gradio: pip install 'clipvis-jax[app]'") from error
                from clipvis_jax import bundled
                from clipvis_jax.commands.app_job import Limits, example_clip
                from clipvis_jax.inference.loading import enable_compilation_cache, load
                from clipvis_jax.inference.segmenter import InferenceConfig

                port = free_port(self.host, self.port)
                limits = Limits(self.max_megabytes, self.max_frames)
                enable_compilation_cache()
            segmenter = load(self.model or bundled.MODEL, config=InferenceConfig(temp_dir=scratch))
            segmenter.cache_dir = scratch / "text"
            example = example_clip(scratch) if self.model is None else None
            page = make_page(segmenter, scratch=scratch, limits=limits, example=example)
            url = launch(page, self.host, port, scratch=scratch, limits=limits)
            try:
                signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
                print_lines(f"clipvis app: {url} (Ctrl-C ends it)")
                Event().wait()
            except KeyboardInterrupt:
                pass
            finally:
                page.close(verbose=False)
