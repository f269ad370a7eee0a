"""``clipvis stream`` on a looped MJPEG stream of 10 frames per second: memory, disk and latency.

    python -m bench.stream --seconds 240

The bundled model on the bundled clip, at a small size, with lines of JSON, a recording and a viewer. Prints Markdown.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
from PIL import Image

from clipvis_jax import bundled
from clipvis_jax.data.catalog import open_dataset
from clipvis_jax.inference.dataset_run import DatasetFrames

FPS = 10


class Camera(BaseHTTPRequestHandler):
    pictures: tuple[bytes, ...] = ()

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        due = time.monotonic()
        try:
            while True:
                for picture in self.pictures:
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    self.wfile.write(head.encode() + picture + b"\r\n")
                    due += 1 / FPS
                    time.sleep(max(due - time.monotonic(), 0))
        except OSError:
            pass

    def log_message(self, *_):
        pass


def jpeg(frame):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=240)
    parser.add_argument("--size", type=int, default=128, help="shorter side of the network's input")
    options = parser.parse_args()
    Camera.pictures = tuple(jpeg(frame) for _, frame in DatasetFrames(open_dataset(bundled.CLIP), 0))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        lines, record = Path(folder, "tracks.jsonl"), Path(folder, "out.mp4")
        command = [sys.executable, "-m", "clipvis_jax.cli", "stream", f"http://127.0.0.1:{server.server_address[1]}"]
        command += ["--model", bundled.MODEL, "--classes", "striped blue arrow", "pink heart", "--size", options.size]
        command += ["--jsonl", lines, "--record", record, "--http", 0, "--seconds", options.seconds]
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        address = next(line.split()[-1] for line in process.stderr if "live page at" in line)
        viewer = urllib.request.urlopen(f"{address}0.mjpg")
        threading.Thread(target=lambda: all(iter(lambda: viewer.read(65536), b"")), daemon=True).start()
        watched = psutil.Process(process.pid)
        while process.poll() is None and not (lines.exists() and lines.stat().st_size):
            time.sleep(0.2)
        begun = due = time.monotonic()
        print("| after | memory | threads, open files | lines | recording |\n|---|---|---|---|---|", flush=True)
        while process.poll() is None:
            if time.monotonic() >= due:
                due += options.seconds / 8
                count = len(lines.read_bytes().splitlines())
                size = record.stat().st_size / 1e6 if record.exists() else 0
                memory = watched.memory_info().rss / 2**20
                handles = f"{watched.num_threads()}, {watched.num_fds()}"
                print(
                    f"| {time.monotonic() - begun:.0f} s | {memory:.0f} MiB | {handles} | {count} | {size:.2f} MB |",
                    flush=True,
                )
            time.sleep(0.5)
        print(process.stderr.read().strip().splitlines()[-1])
        records = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        print(f"{len(records)} lines, {lines.stat().st_size / len(records):.0f} bytes each")


if __name__ == "__main__":
    main()
