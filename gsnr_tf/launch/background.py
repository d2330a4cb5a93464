"""A job beside the process that started it."""

import threading


class Background:
    """Runs a job in a thread. It ends with this process at the latest.

    Args:
        job: The `Job`, best a quiet one.
    """

    def __init__(self, job):
        self.job = job
        self._code = self._error = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._code = self.job.run()
        except BaseException as error:
            self._error = error

    @property
    def alive(self):
        """Whether the job is still running."""
        return self._thread.is_alive()

    def wait(self, seconds=None):
        """The exit code of the job; `None` where it has not ended after so many seconds.

        Raises:
            CannotStart: The job cannot start as described.
        """
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error
        return self._code

    def stop(self):
        """Ends the job and returns when it has ended."""
        self.job.stop()
        self._thread.join()
