"""Archives from elsewhere: nothing leaves the folder, nothing swells, an interrupted transfer goes on."""

from __future__ import annotations

import functools
import http.server
import io
import re
import tarfile
import threading
from pathlib import Path

import pytest

from espnet3.data.corpora.archive import download, extract_tar
from espnet3.errors import UserError


def make(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
    return path


def member(name: str, size: int = 4, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size if kind == tarfile.REGTYPE else 0, kind, link
    return info


def unpack(archive: Path, max_bytes: int = 1 << 20) -> int:
    return extract_tar(archive, archive.parent / "out", lambda path: path.suffix == ".wav", max_bytes)


def test_only_what_is_wanted_comes_out(tmp_path):
    archive = make(tmp_path / "a.tar.gz", member("top/x/a.wav"), member("top/evil.py"), member("top/x/b.wav"))
    assert unpack(archive) == 2
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == [
        "a.tar.gz",
        "out/x/a.wav",
        "out/x/b.wav",
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("top/../../evil.wav"), "would leave the folder"),
        (member("/etc/evil.wav"), "would leave the folder"),
        (member("top/a.wav", kind=tarfile.SYMTYPE, link="/etc/passwd"), "no regular file"),
        (member("top/a.wav", kind=tarfile.LNKTYPE, link="top/b.wav"), "no regular file"),
        (member("top/a.wav", kind=tarfile.CHRTYPE), "no regular file"),
        (member("top/a.wav", size=2 << 20), "more than the 1 MiB"),
    ],
)
def test_a_hostile_archive_leaves_nothing_behind(tmp_path, bad, message):
    archive = make(tmp_path / "a.tar.gz", member("top/first.wav"), bad)
    with pytest.raises(UserError, match=message):
        unpack(archive)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]
    assert not (tmp_path.parent / "evil.wav").exists()


@pytest.mark.parametrize("keep", [0, 40])
def test_a_damaged_archive_is_one_line(tmp_path, keep):
    archive = make(tmp_path / "a.tar.gz", member("top/a.wav", size=4000))
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(UserError, match=re.escape(f"{archive}: cannot be unpacked")):
        unpack(archive)


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves files, and ranges of them; breaks off in the middle of ``/cut``."""

    def do_GET(self):
        data = (Path(self.directory) / "data").read_bytes()
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = len(data) // 2 if self.path == "/cut" and not start else len(data)
        self.wfile.write(data[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def address(tmp_path):
    (tmp_path / "data").write_bytes(bytes(range(256)) * 4000)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_interrupted_transfer_goes_on_where_it_stopped(tmp_path, address):
    target = tmp_path / "got" / "file"
    with pytest.raises(UserError, match="cut short"):
        download(f"{address}/cut", target, 10 << 20)
    assert not target.exists()
    assert target.with_name("file.partial").stat().st_size == 512000
    assert download(f"{address}/cut", target, 10 << 20).read_bytes() == (tmp_path / "data").read_bytes()


def test_more_than_is_expected_is_refused(tmp_path, address):
    with pytest.raises(UserError, match="more than the 0 MiB"):
        download(f"{address}/data", tmp_path / "file", 1000)
