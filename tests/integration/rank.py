"""A rank for test_run.py without TensorFlow: says who it is, does as it is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

name = os.environ["HOROVOD_RANK"]
print(
    "I am",
    json.dumps(
        {
            "rank": int(name),
            "host": os.environ["HOROVOD_HOSTNAME"],
            "local_size": int(os.environ["HOROVOD_LOCAL_SIZE"]),
            "threads": os.environ["OMP_NUM_THREADS"],
            "tensorflow_threads": os.environ["TF_NUM_INTRAOP_THREADS"],
            "path": os.environ["PATH"],
            "arguments": sys.argv[1:],
        }
    ),
    flush=True,
)
if "bytes" in sys.argv:
    # More than pipes hold, on both streams, of which not all is UTF-8; a character in
    # two pieces; a line that is never ended.
    for stream in (sys.stdout.buffer, sys.stderr.buffer):
        stream.write(b"caf\xe9\n" * 50_000)
        stream.flush()
    os.write(1, "caf\u00e9".encode()[:-1])
    time.sleep(0.5)
    os.write(1, "\u00e9".encode()[1:] + b"\n 1%\r 2%\rdone")
    # Lives on in a session of its own, and would hold the output open.
    subprocess.Popen(["sleep", "600"], start_new_session=True)
if "saves" in sys.argv:

    def save(*_):
        # Longer than Horovod waits, with more to say than a pipe holds.
        print("saving " * 50_000, flush=True)
        time.sleep(7)
        (Path(sys.argv[-1]) / f"saved-{name}").touch()
        sys.exit(75)

    signal.signal(signal.SIGTERM, save)
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if {"saves", "deaf"} & set(sys.argv):
    print("asleep", flush=True)
    time.sleep(600)
if "sleep" in sys.argv:
    # A child of its own, which must end as well.
    child = subprocess.Popen(["sleep", "600"])
    print("asleep", flush=True)
    time.sleep(600)
if "fail" in sys.argv:
    there = Path(sys.argv[-1])
    if name == "0":
        there.touch()
    if name == "1":
        while not there.exists():
            time.sleep(0.1)
        try:
            {}["lost"]
        except KeyError as error:
            raise ValueError("rank 1 has no\ttable") from error
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(600)
