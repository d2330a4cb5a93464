"""A process, or one rank of several, that trains what it is told.

    python -m gsnr_tf.compare.worker RUN_DIR

`workers.Worker` starts it and tells it what to train, over a socket, in lines of JSON:
`{"cell": 3, "run": {…}}` for `Trainer.run(**run)` on cell 3 of the settings, answered
by its result or `{"error": …}`. It ends when that socket closes: nobody is left training
after the study was killed.
"""

import json
import os
import queue
import socket
import sys
import threading
import traceback

# Environment variable: the port to connect to, and the word to say first.
ADDRESS = "GSNR_TF_COMPARE_ADDRESS"


def _connect(jobs):
    """Passes on what comes in; returns a function that answers."""
    port, word = os.environ[ADDRESS].split()
    connection = socket.create_connection(("localhost", int(port)))
    # Two files: a text file must not be used by two threads.
    incoming, outgoing = connection.makefile("r"), connection.makefile("w")

    def read():
        try:
            for line in incoming:
                jobs.put(json.loads(line))
        finally:
            os._exit(1)  # whatever it is doing; horovodrun ends the other ranks

    def say(line):
        print(line, file=outgoing, flush=True)

    say(word)
    threading.Thread(target=read, daemon=True).start()
    return lambda answer: say(json.dumps(answer))


def main(folder):
    """Trains what comes in over the socket, to the end of the study."""
    import keras
    import tensorflow as tf

    from gsnr_tf import comm
    from gsnr_tf.compare.settings import Settings
    from gsnr_tf.compare.task import load_task
    from gsnr_tf.compare.training import Trainer

    ranks = comm.choose("auto", tf.distribute.get_strategy())
    jobs = queue.Queue()
    answer = _connect(jobs) if comm.rank() == 0 else None
    settings = Settings.read(folder)
    cells = settings.cells()
    task = settings.apply_to(load_task(settings.task, settings.size))
    data, trainer, index = task.load(), None, None
    while True:
        # All ranks learn what rank 0 was told.
        job = ranks.gather(jobs.get() if answer else None)[0]
        try:
            if job["cell"] != index:
                trainer, index = None, job["cell"]
                keras.backend.clear_session()
                cell = cells[index]
                trainer = Trainer(task, data, cell.contender, cell.batch)
            result = trainer.run(**job["run"])
        except Exception:
            if answer:
                answer({"error": traceback.format_exc()})
            raise
        if answer:
            answer(result)


if __name__ == "__main__":
    main(sys.argv[1])
