"""A process, or one rank of several, that trains what it is told.

    python -m gsnr_tf.compare.worker RUN_DIR

`workers.Worker` starts it and tells it what to train, over a socket, in lines of JSON:
`{"cell": 3, "regularizer": 0.1, "run": {…}}` for `Trainer.run(**run)` on cell 3 of the
settings, answered by its result or `{"error": …}`. Scores of single rows go to a file,
which the result names. It ends when that socket closes: nobody is left training
after the study was killed.
"""

import json
import os
import queue
import socket
import sys
import threading
import traceback
from pathlib import Path

import numpy as np

# So many traced models are kept, of cells and values of the regularizer.
TRAINERS = 32
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


def _save_rows(folder, job, result):
    """Puts the scores of single rows into a file of their own."""
    scores = result.pop("row_scores", None)
    if scores is None:
        return
    run = job["run"]
    name = f"{job['cell']}-{run['learning_rate']}-{job['regularizer']}-{run['seed']}.npy"
    file = Path(folder) / "rows" / name
    file.parent.mkdir(exist_ok=True)
    aside = file.with_suffix(".new")
    with open(aside, "wb") as out:
        np.save(out, np.asarray(scores, "float32"))
    aside.rename(file)
    result["rows"] = f"rows/{name}"


def main(folder):
    """Trains what comes in over the socket, to the end of the study."""
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
    data, trainers = task.load(), {}
    while True:
        # All ranks learn what rank 0 was told.
        job = ranks.gather(jobs.get() if answer else None)[0]
        try:
            key = job["cell"], job["regularizer"]
            trainer = trainers.pop(key, None)
            if trainer is None:
                cell = cells[job["cell"]]
                trainer = Trainer(task, data, cell.contender, cell.batch, key[1])
            # The one that was used last comes last.
            trainers[key] = trainer
            if len(trainers) > TRAINERS:
                del trainers[next(iter(trainers))]
            result = trainer.run(**job["run"])
        except Exception:
            if answer:
                answer({"error": traceback.format_exc()})
            raise
        if answer:
            _save_rows(folder, job, result)
            answer(result)


if __name__ == "__main__":
    main(sys.argv[1])
