"""The report as a reader meets it: one file, in a browser, on paper."""

import re
import shutil

import matplotlib.image
import numpy as np
import pytest

from gsnr_tf.cli import main
from tests.processes import run
from tests.recorded import Drawn, record

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OFFLINE = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECTIONS = ["What it says", "Training", "Noise scale and batch", "GSNR by layer",
            "Multiplier", "Time", "Variables"]  # fmt: skip

SMALL = {"embedding/table": (60, 8), "dense/kernel": (20, 10), "dense/<b>&": (10,)}
LARGE = {
    f"encoder/block_{block}/{name}": shape
    for block in range(50)
    for name, shape in {
        "query/kernel": (12, 8),
        "key/kernel": (12, 8),
        "mlp/kernel": (8, 16),
        "mlp/bias": (16,),
        "norm/gamma": (8,),
        "norm/beta": (8,),
    }.items()
}


def made(folder, shapes, updates):
    scales = np.geomspace(300, 5000, updates)
    record(folder, Drawn(shapes, 8, 256), scales, loss=lambda p: 2 - p)
    assert main(["report", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return made(tmp_path_factory.mktemp("small"), SMALL, 40)


def test_one_file_says_it_all_without_a_network(small):
    text = small.read_text()
    assert re.findall("<h2>(.*?)</h2>", text) == SECTIONS
    # Names of XML vocabularies are no addresses to fetch from.
    fetched = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert not re.search(r"https?://|url\((?!#)", fetched)
    assert not re.search(r"<(script|link|iframe)\b", text)
    assert text.count("<svg role=") == 5
    assert "dense/&lt;b&gt;&amp;" in text and "<b>&" not in text


def test_the_same_run_makes_the_same_file(small):
    before = re.sub(r"[#\"'][mpCP]?\w{8,}", "", small.read_text())
    assert main(["report", str(small.parent)]) == 0
    assert re.sub(r"[#\"'][mpCP]?\w{8,}", "", small.read_text()) == before


def test_a_folder_without_a_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "is not the folder of a run" in capsys.readouterr().err


def picture(page, folder, height):
    """The page in Chromium, 1280 pixels wide, as an array `[height, 1280, 3]`."""
    shot = folder / "page.png"
    profile = f"--user-data-dir={folder / 'profile'}"
    size = f"--window-size=1280,{height}"
    command = [CHROMIUM, *OFFLINE, profile, size, f"--screenshot={shot}", page.as_uri()]
    finished = run(command, seconds=60)
    assert shot.exists(), finished.output
    return matplotlib.image.imread(shot)[:, :, :3]


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium to look with")
@pytest.mark.parametrize("variables", [3, 300])
def test_in_a_browser(small, tmp_path, variables):
    page = small if variables == 3 else made(tmp_path / "run", LARGE, 16)
    # The layers of the large model take more room.
    seen = picture(page, tmp_path, 3000 if variables == 3 else 4200)
    assert seen.shape[1] == 1280
    ink = (seen < 0.9).any(axis=2)
    # Nothing runs over the margins, and there is something everywhere between.
    assert not ink[:, :20].any() and not ink[:, -20:].any()
    assert ink[:, 100:-100].any(axis=0).all()
    for colour in ("#0072B2", "#D55E00", "#56B4E9", "#E69F00"):
        wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        close = np.abs(seen - wanted).max(axis=2) < 0.02
        assert close.sum() > 100, colour


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium to print with")
def test_on_paper(small, tmp_path):
    paper = tmp_path / "page.pdf"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    options = [profile, "--no-pdf-header-footer", f"--print-to-pdf={paper}"]
    finished = run([CHROMIUM, *OFFLINE, *options, small.as_uri()], seconds=60)
    assert paper.exists(), finished.output
    pages = len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))
    assert 2 <= pages <= 5
