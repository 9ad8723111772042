import hashlib
import http.server
import io
import logging
import tarfile
import threading
from functools import partial
from pathlib import Path

import pytest

from train import download as module
from train.data.frames import DataError
from train.download import SOURCES, Source, download, fetch
from train.formats.md17 import read_md17
from train.formats.qm9 import read_qm9

from ..support import rmd17_arrays, write_npz
from .formats.test_qm9 import original_files


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and answers as servers do that are not what they seem."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.path == "/challenge":
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"PK, and then the line breaks")
        else:
            super().do_GET()


@pytest.fixture
def address(tmp_path):
    """The address of a server of the folder tmp_path/public."""
    (tmp_path / "public").mkdir()
    handler = partial(Handler, directory=tmp_path / "public")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def use(monkeypatch, name, *sources):
    monkeypatch.setattr(module, "SOURCES", {name: sources})


def test_md17(tmp_path, address, monkeypatch, caplog):
    public = write_npz(tmp_path / "public" / "x.npz", **rmd17_arrays())
    use(monkeypatch, "md17-ethanol", Source(f"{address}/x.npz", "md17_ethanol.npz", b"PK"))
    with caplog.at_level(logging.INFO):
        path = download("md17-ethanol", tmp_path / "new" / "data")
    assert path == tmp_path / "new" / "data" / "md17_ethanol.npz"
    assert len(read_md17(path)) == 60
    assert hashlib.sha256(public.read_bytes()).hexdigest() in caplog.text
    assert "not checked, as none is published" in caplog.text
    public.unlink()  # what is there is not fetched again
    assert download("md17-ethanol", tmp_path / "new" / "data") == path


def test_file_addresses(tmp_path):
    public = write_npz(tmp_path / "x.npz", **rmd17_arrays())
    assert fetch(Source(public.as_uri(), "y.npz", b"PK"), tmp_path).read_bytes().startswith(b"PK")


def test_checksums(tmp_path, address, caplog):
    content = (write_npz(tmp_path / "public" / "x.npz", **rmd17_arrays())).read_bytes()
    right = hashlib.sha256(content).hexdigest()
    with pytest.raises(DataError, match=f"is not y.npz: its SHA-256 is {right}, not 0000"):
        fetch(Source(f"{address}/x.npz", "y.npz", b"PK", "0" * 64), tmp_path)
    assert not (tmp_path / "y.npz").exists()
    with caplog.at_level(logging.INFO):
        fetch(Source(f"{address}/x.npz", "y.npz", b"PK", right), tmp_path)
    assert "as published" in caplog.text
    (tmp_path / "y.npz").write_bytes(b"PK, but another")
    with pytest.raises(DataError, match="is not y.npz"):
        fetch(Source(f"{address}/x.npz", "y.npz", b"PK", right), tmp_path)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("none.npz", "404.*Fetch it by hand.*save it as .*y.npz"),
        ("challenge", "status 202.*Fetch it by hand"),
        ("short", "28 of 1000 bytes arrived.*Fetch it by hand"),
        ("page.html", "gave is not y.npz.*Fetch it by hand"),
    ],
)
def test_servers_that_do_not_give_the_file(tmp_path, address, page, message):
    (tmp_path / "public" / "page.html").write_text("<html>moved</html>")
    with pytest.raises(DataError, match=message):
        fetch(Source(f"{address}/{page}", "y.npz", b"PK"), tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_no_network(tmp_path):
    # Port 9 of this machine refuses.
    with pytest.raises(DataError, match="could not be fetched.*Fetch it by hand.*y.npz"):
        fetch(Source("http://127.0.0.1:9/x.npz", "y.npz"), tmp_path)


def rmd17_archive(path, top):
    write_npz(path.parent / "e.npz", **rmd17_arrays())
    with tarfile.open(path, "w:bz2") as archive:
        archive.add(path.parent / "e.npz", f"{top}/npz_data/rmd17_ethanol.npz")


def test_rmd17_is_unpacked(tmp_path, address, monkeypatch):
    rmd17_archive(tmp_path / "public" / "r.tar.bz2", "rmd17")
    use(monkeypatch, "rmd17", Source(f"{address}/r.tar.bz2", "rmd17.tar.bz2", b"BZh"))
    folder = download("rmd17", tmp_path / "data")
    assert len(read_md17(folder / "npz_data" / "rmd17_ethanol.npz")) == 60
    assert {p.name for p in (tmp_path / "data").iterdir()} == {"rmd17", "rmd17.tar.bz2"}
    assert download("rmd17", tmp_path / "data") == folder


@pytest.mark.parametrize(
    ("top", "cut", "message"),
    [("other", 0, "holds no folder rmd17"), ("rmd17", 200, "not a readable archive")],
)
def test_unusable_archives(tmp_path, address, monkeypatch, top, cut, message):
    archive = tmp_path / "public" / "r.tar.bz2"
    rmd17_archive(archive, top)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size - cut])
    use(monkeypatch, "rmd17", Source(f"{address}/r.tar.bz2", "rmd17.tar.bz2", b"BZh"))
    with pytest.raises(DataError, match=message):
        download("rmd17", tmp_path / "data")
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["rmd17.tar.bz2"]


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 4 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([member("../evil")], "'../evil', a file outside"),
        ([member("rmd17/../../evil")], "evil', a file outside"),
        ([member("/tmp/lkm-calc-evil")], "'/tmp/lkm-calc-evil', a file outside"),
        (
            [member("rmd17/a", tarfile.SYMTYPE, "../.."), member("rmd17/a/evil")],
            "'rmd17/a', a link",
        ),
        ([member("rmd17/a", tarfile.SYMTYPE, "/etc/passwd")], "a link or a device"),
        ([member("rmd17/a", tarfile.LNKTYPE, "../../evil")], "a link or a device"),
        ([member("rmd17/a", tarfile.FIFOTYPE)], "a link or a device"),
        ([member("rmd17/a", tarfile.CHRTYPE)], "a link or a device"),
    ],
)
def test_archives_that_reach_outside_are_refused(tmp_path, monkeypatch, bad, message):
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "rmd17.tar.bz2", "w:bz2") as archive:
        archive.addfile(member("rmd17/good"), io.BytesIO(b"good"))
        for info in bad:
            archive.addfile(info, io.BytesIO(b"evil"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=message):
        download("rmd17", tmp_path / "data")
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/lkm-calc-evil").exists()


def test_folders_in_archives(tmp_path):
    with tarfile.open(tmp_path / "rmd17.tar.bz2", "w:bz2") as archive:
        archive.addfile(member("rmd17", tarfile.DIRTYPE))
        archive.addfile(member("rmd17/readme"), io.BytesIO(b"text"))
    folder = download("rmd17", tmp_path)
    assert [p.name for p in folder.iterdir()] == ["readme"]
    assert (folder / "readme").read_bytes() == b"text"


def test_a_fault_of_the_program_is_not_blamed_on_the_archive(tmp_path, monkeypatch):
    rmd17_archive(tmp_path / "rmd17.tar.bz2", "rmd17")

    def extract(self, member, *, newer_than_this_python):
        raise AssertionError("never called")

    monkeypatch.setattr(tarfile.TarFile, "extractfile", extract)
    with pytest.raises(TypeError, match="newer_than_this_python"):
        download("rmd17", tmp_path)


def test_qm9_is_packed(tmp_path, address, monkeypatch):
    original_files(tmp_path / "public")
    use(
        monkeypatch,
        "qm9",
        Source(f"{address}/q.tar.bz2", "dsgdb9nsd.xyz.tar.bz2", b"BZh"),
        Source(f"{address}/list.txt", "uncharacterized.txt"),
    )
    assert len(read_qm9(download("qm9", tmp_path / "data"))) == 2


def test_unknown_names(tmp_path):
    with pytest.raises(DataError, match="no data set 'md17-water'; choose one of md17-aspirin"):
        download("md17-water", tmp_path)
    assert len(SOURCES) == 10
