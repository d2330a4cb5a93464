"""A rank for test_run.py without TensorFlow: says who it is, does as it is told."""

import json
import os
import subprocess
import sys
import time

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
if "sleep" in sys.argv:
    # A child of its own, which must end as well.
    child = subprocess.Popen(["sleep", "600"])
    print("asleep", flush=True)
    time.sleep(600)
if "fail" in sys.argv:
    if name == "1":
        try:
            {}["lost"]
        except KeyError as error:
            raise ValueError("rank 1 has no\ttable") from error
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(600)
