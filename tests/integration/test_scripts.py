"""The set-up scripts, as far as they can be tried in seconds.

TensorFlow, Horovod and the compiler are stand-ins here: a folder with a
`tensorflow` that knows its version, a wheel made of four small files. The real
build is tried by running the scripts.
"""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "horovod_scripts"
INSTALL = SCRIPTS / "install_horovod.sh"
SECONDS = 25

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the scripts are for Linux"
)

FAKE_TENSORFLOW = """\
__version__ = "{version}"

class sysconfig:
    get_compile_flags = staticmethod(lambda: ["-D_GLIBCXX_USE_CXX11_ABI=1"])
    get_build_info = staticmethod(dict)

def constant(values):
    class Tensor:
        numpy = lambda self: self
        tolist = lambda self: values
    return Tensor()
"""

FAKE_HOROVOD = """\
Sum = None
init = lambda: None
size = lambda: 1
allreduce = lambda tensor, op, name: tensor
"""

CMAKE_LINE = 'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n'


def run(*command, **environment):
    """Runs a command with its output, both streams, as text."""
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **{k: str(v) for k, v in environment.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )


def fake_tensorflow(folder, version):
    package = Path(folder) / "tensorflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_TENSORFLOW.format(version=version))
    return folder


def program(path, text="#!/bin/sh\nexit 0\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def path_without_compiler(folder):
    """A folder with what the script uses, but no compiler and no make."""
    folder.mkdir()
    tools = "bash awk basename cat chmod cp cut dirname env flock grep mkdir mktemp mv rm sed sh"
    for tool in [*tools.split(), "head", "tail", "uname"]:
        found = shutil.which(tool)
        if found:
            (folder / tool).symlink_to(found)
    return folder


@pytest.fixture
def empty_venv(tmp_path):
    """An environment with Python alone, in a path with a blank."""
    folder = tmp_path / "with blank" / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    return folder


def site_packages(environment):
    return next(environment.glob("lib/python3*/site-packages"))


@pytest.mark.parametrize(
    "script", [*sorted(SCRIPTS.glob("*.sh")), ROOT / ".ci" / "run"], ids=lambda p: p.name
)
def test_script_parses(script):
    result = run("bash", "-n", script)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "name", ["docs.sh", "gpu_check.sh", "install_horovod.sh", "quickstart.sh", "test.sh"]
)
def test_help_fits_a_terminal_and_does_nothing_else(name):
    result = run("bash", SCRIPTS / name, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"Usage: {name}")
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("nvidia_smi", "told"),
    [(None, "nvidia-smi was not found"), ("#!/bin/sh\nexit 9\n", "nvidia-smi lists no GPU")],
)
def test_without_a_gpu_nothing_is_checked(tmp_path, nvidia_smi, told):
    path = path_without_compiler(tmp_path / "bin")
    if nvidia_smi:
        program(path / "nvidia-smi", nvidia_smi)
    result = run("bash", SCRIPTS / "gpu_check.sh", PATH=path)
    assert result.returncode == 77
    assert result.stdout.startswith("Nothing was checked: ") and told in result.stdout


def test_without_tensorflow_says_so(empty_venv, tmp_path):
    result = run("bash", INSTALL, empty_venv, XDG_CACHE_HOME=tmp_path / "cache", PYTHONPATH="")
    assert result.returncode == 1
    assert "there is no TensorFlow in this environment" in result.stdout
    assert "pip install tensorflow-cpu" in result.stdout


def test_without_compiler_says_so(empty_venv, tmp_path):
    fake_tensorflow(site_packages(empty_venv), "2.21.0")
    use_our_packages(empty_venv)
    result = run(
        "bash", INSTALL, empty_venv,
        PATH=path_without_compiler(tmp_path / "bin"), CXX="", PYTHONPATH="",
        XDG_CACHE_HOME=tmp_path / "cache",
    )  # fmt: skip
    assert result.returncode == 1
    assert "there is no working C++17 compiler" in result.stdout


@pytest.mark.parametrize("lines", [0, 2])
def test_source_that_differs_is_not_built(empty_venv, tmp_path, lines):
    fake_tensorflow(site_packages(empty_venv), "2.21.0")
    use_our_packages(empty_venv)
    source = tmp_path / "source"
    cmake = source / "horovod" / "tensorflow" / "CMakeLists.txt"
    cmake.parent.mkdir(parents=True)
    cmake.write_text("set(TF_SOURCES)\n" + lines * CMAKE_LINE)
    (source / "setup.py").write_text("raise SystemExit('must not be run')\n")
    program(tmp_path / "bin" / "c++")
    program(tmp_path / "bin" / "make")
    result = run(
        "bash", INSTALL, "--source", source, empty_venv,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", CXX="", PYTHONPATH="",
        XDG_CACHE_HOME=tmp_path / "cache",
    )  # fmt: skip
    assert result.returncode == 1
    assert "does not have the one line that adds xla_mpi_ops.cc" in result.stdout
    assert "must not be run" not in result.stdout


def test_gloo_that_differs_is_not_built(empty_venv, tmp_path):
    fake_tensorflow(site_packages(empty_venv), "2.21.0")
    use_our_packages(empty_venv)
    source = tmp_path / "source"
    cmake = source / "horovod" / "tensorflow" / "CMakeLists.txt"
    cmake.parent.mkdir(parents=True)
    cmake.write_text("set(TF_SOURCES)\n" + CMAKE_LINE)
    gloo = source / "third_party" / "gloo" / "gloo"
    gloo.mkdir(parents=True)
    (gloo / "alltoallv.cc").write_text("{\n  in->send(1);\n  out->recv(2);\n}\n")
    (gloo / "allgatherv.cc").write_text("{\n  out->recv(1);\n  out->send(2);\n}\n")
    (source / "setup.py").write_text("raise SystemExit('must not be run')\n")
    program(tmp_path / "bin" / "c++")
    program(tmp_path / "bin" / "make")
    result = run(
        "bash", INSTALL, "--source", source, empty_venv,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", CXX="", PYTHONPATH="",
        XDG_CACHE_HOME=tmp_path / "cache",
    )  # fmt: skip
    assert result.returncode == 1
    assert "does not send and receive where expected" in result.stdout
    assert "must not be run" not in result.stdout


def test_cache_folder_follows_tensorflow(empty_venv, tmp_path):
    def cache_folder(version):
        site = tmp_path / version
        fake_tensorflow(site, version)
        result = run(
            "bash", INSTALL, "--print-cache", empty_venv,
            PYTHONPATH=site, XDG_CACHE_HOME=tmp_path / "cache",
        )  # fmt: skip
        assert result.returncode == 0, result.stdout
        return result.stdout.strip()

    older, newer = cache_folder("2.20.0"), cache_folder("2.21.0")
    assert older.startswith(str(tmp_path / "cache" / "gsnr_tf" / "wheels"))
    assert newer == older.replace("2.20.0", "2.21.0")
    assert f"cpython-{sys.version_info[0]}{sys.version_info[1]}" in newer
    assert os.uname().machine in newer


def use_our_packages(environment):
    """Lends an environment pip and what Horovod needs, from the tests' own."""
    needed = ("pip", "cffi", "cloudpickle", "packaging", "psutil", "pyyaml")
    try:
        places = {str(metadata.distribution(name).locate_file("")) for name in needed}
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"the tests' own environment lacks {error.name}")
    # After the environment's own folder, so its stand-ins come first.
    (site_packages(environment) / "lent.pth").write_text("\n".join(places))


def fake_wheel(folder):
    folder.mkdir(parents=True)
    info = "horovod-0.28.1.dist-info"
    files = {
        "horovod/__init__.py": "",
        "horovod/tensorflow/__init__.py": FAKE_HOROVOD,
        "horovod/launch.py": "main = lambda: print('[X] TensorFlow', '[X] Gloo')\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: horovod\nVersion: 0.28.1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nhorovodrun = horovod.launch:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / "horovod-0.28.1-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


def test_kept_wheel_needs_no_compiler_and_no_network(empty_venv, tmp_path):
    fake_tensorflow(site_packages(empty_venv), "2.21.0")
    use_our_packages(empty_venv)
    environment = {
        "PATH": path_without_compiler(tmp_path / "bin"),
        "XDG_CACHE_HOME": tmp_path / "cache",
        "PIP_NO_INDEX": "1",
        "PYTHONPATH": "",
    }
    printed = run("bash", INSTALL, "--print-cache", empty_venv, **environment).stdout
    fake_wheel(Path(printed.strip()))
    result = run("bash", INSTALL, empty_venv, **environment)
    assert result.returncode == 0, result.stdout
    assert "Taking the wheel" in result.stdout
    assert "Compiling" not in result.stdout
    assert (site_packages(empty_venv) / "horovod" / "launch.py").is_file()
