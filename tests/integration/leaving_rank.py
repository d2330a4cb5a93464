"""A rank for test_peers_at_the_end.py: shares something, then leaves in its own way.

    python leaving_rank.py RANK RANKS FOLDER WAY

Ranks meet by files in FOLDER, and load no TensorFlow, which would take most of the time.
"""

import atexit
import os
import pickle
import signal
import sys
import threading
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for name in ("gsnr_tf", "gsnr_tf.comm"):
    package = types.ModuleType(name)
    package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
    sys.modules[name] = package

import json

from gsnr_tf.comm.peers import PeerLost, Peers

# A shell lets what it starts in the background ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
rank, ranks = map(int, sys.argv[1:3])
folder, way = Path(sys.argv[3]), sys.argv[4]
meetings = iter(range(10))


def gather(value):
    meeting = next(meetings)
    draft = folder / f"draft-{rank}"
    draft.write_bytes(pickle.dumps(value))
    draft.rename(folder / f"{meeting}-{rank}")
    paths = [folder / f"{meeting}-{other}" for other in range(ranks)]
    while not all(path.exists() for path in paths):
        time.sleep(0.01)
    return [pickle.loads(path.read_bytes()) for path in paths]


class Share:
    def changes(self):
        return 7

    def own(self, what):
        if way == "dies when asked":
            os.kill(os.getpid(), signal.SIGKILL)
        return f"{what} of rank {rank}".encode()


def say(text):
    print(f"rank {rank} {text}", flush=True)


def ended(other):
    return json.loads(peers._ranks[other].ask("status"))["ended"]


def read():
    try:
        say(f"reads {[bytes(share).decode() for share in peers.collect('m/1')]}")
    except PeerLost as error:
        say(f"lost: {error}")


atexit.register(say, "leaves")
peers = Peers(gather, Share())
say("has met the others")
if way == "saves late":
    while not all(ended(other) for other in range(ranks) if other != rank):
        time.sleep(0.01)
    read()
elif way == "watches":
    while not ended(1):
        time.sleep(0.01)
    say("sees that rank 1 has ended")
    time.sleep(600)
elif way == "reads":
    read()
elif way == "saves in the background":

    def save():
        threading.main_thread().join()
        while not ended(0):
            time.sleep(0.01)
        read()

    threading.Thread(target=save).start()
elif way == "raises":
    raise ValueError("no space left")
elif way == "exits":
    sys.exit(5)
elif way == "exits well":
    exit(0)
elif way == "exits abruptly":
    os._exit(6)
elif way == "sleeps":
    time.sleep(600)
elif way.startswith("lets go"):
    peers.close()
    if way == "lets go and sleeps":
        time.sleep(600)
