"""The program of a test rank: takes functions from the tests and runs them.

A file of its own, as a rank can import neither the tests nor what only they use.
"""

import os
import sys
import traceback
from multiprocessing.connection import Client

import cloudpickle


def serve(host, port):
    """The life of a rank: take a body, run it, send what it returned."""
    connection = Client((host, int(port)), authkey=bytes.fromhex(os.environ["GSNR_TEST_KEY"]))
    connection.send(int(os.environ["HOROVOD_RANK"]))
    while True:
        try:
            body, args = cloudpickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = (False, body(*args))
        except BaseException:
            answer = (True, traceback.format_exc())
        connection.send(answer)


if __name__ == "__main__":
    serve(*sys.argv[1:])
