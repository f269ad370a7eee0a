"""A small Hugging Face hub on the loopback: models are made, pushed to and fetched from, by the hub's own protocol."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """``models`` has the revisions of every model, by name and, of each, the files; ``fetched`` what was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.fetched: list[str] = []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name, files):
        """Add a revision, which becomes main; returns its id."""
        revisions = self.models.setdefault(name, {})
        new = {**revisions.get("main", {}), **files}
        commit = hashlib.sha1(repr((len(revisions), sorted(new.items()))).encode()).hexdigest()
        revisions[commit] = revisions["main"] = new
        return commit

    def commit_of(self, name, revision):
        files = self.models[name][revision]
        return next(commit for commit, other in self.models[name].items() if other is files and commit != "main")


@contextlib.contextmanager
def running_hub():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self._chunks()
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name.startswith("others/"):
                self._answer({"error": "not yours"}, 403)
                return
            self.server.models.setdefault(name, {})
            self._answer({"url": f"{self.server.address}/{name}", "name": name})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            if found[2] == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(body)["files"]
                ]
                self._answer({"files": files})
                return
            lines = [json.loads(line) for line in body.splitlines()]
            files = {x["value"]["path"]: base64.b64decode(x["value"]["content"]) for x in lines if x["key"] == "file"}
            commit = self.server.commit(found[1], files)
            url = f"{self.server.address}/{found[1]}/commit/{commit}"
            self._answer({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
        else:
            self._answer({"error": path}, 404)

    def _chunks(self):
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return body

    def do_GET(self):
        path = self.path.partition("?")[0]
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = info or file
        name, revision = (found[1], (info[3] or "main") if info else found[2]) if found else ("", "")
        if name not in self.server.models:
            self._answer({"error": "no such model"}, 404, X_Error_Code="RepoNotFound")
        elif revision not in self.server.models[name]:
            self._answer({"error": "no such revision"}, 404, X_Error_Code="RevisionNotFound")
        else:
            files, commit = self.server.models[name][revision], self.server.commit_of(name, revision)
            if file and file[3] in files:
                self.server.fetched += [file[3]] * (self.command == "GET")
                digest = hashlib.sha1(files[file[3]]).hexdigest()
                self._answer(files[file[3]], X_Repo_Commit=commit, ETag=f'"{digest}"')
            elif file:
                self._answer({"error": "no such file"}, 404, X_Error_Code="EntryNotFound")
            elif info[2] == "tree":
                tree = [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in files.items()
                ]
                self._answer(tree)
            else:
                self._answer({"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]})

    def do_HEAD(self):
        self.do_GET()
