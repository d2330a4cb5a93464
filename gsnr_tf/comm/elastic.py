"""Horovod jobs whose ranks come and go."""

import contextlib
import os
import socket

import tensorflow as tf

from gsnr_tf.comm import horovod
from gsnr_tf.comm.peers import PeerLost


def run(train, state):
    """Calls `train()` until it returns, beginning anew whenever ranks come or go.

    Args:
        train: Function without arguments.
        state: Has `sync()`, called on all ranks that there are before each `train()`;
            `restore()`, called before that where ranks were lost; and gets an
            attribute `check_hosts`, to be called by `train` on all ranks together
            where it may be interrupted because hosts have come or gone.

    Returns:
        What `train()` returned.
    """
    from horovod.common.elastic import State, run_fn
    from horovod.common.exceptions import HostsUpdatedInterrupt

    hvd = horovod.load()
    _listen_on_job_interface()

    class Member(State):
        sync = staticmethod(state.sync)
        restore = staticmethod(state.restore)

    def restart():
        horovod.set_together(False)
        hvd.shutdown()
        hvd.init()

    def body(member):
        try:
            with failures():
                return train()
        except HostsUpdatedInterrupt as interrupt:
            # Where ranks only leave, Horovod would skip `sync`. But for another number
            # of ranks everything has to be arranged anew.
            raise HostsUpdatedInterrupt(skip_sync=False) from interrupt

    member = Member(hvd.broadcast_object, hvd.rank)
    state.check_hosts = member.check_host_updates
    return run_fn(body, restart)(member)


def _listen_on_job_interface():
    """Where Horovod tells this rank of new hosts, strangers shall not reach it.

    Horovod's service listens on all interfaces, though it is asked on the job's alone.
    """
    import psutil  # comes with Horovod
    from horovod.runner.common.util import network

    interface = os.environ.get("HOROVOD_GLOO_IFACE")
    addresses = [
        known.address
        for known in psutil.net_if_addrs().get(interface, [])
        if known.family == socket.AF_INET
    ]
    if not addresses or hasattr(network.find_port, "address"):
        return
    search = network.find_port

    def find_port(server):
        return search(lambda any_address: server((addresses[0], any_address[1])))

    find_port.address = addresses[0]  # type: ignore[attr-defined]
    network.find_port = find_port


@contextlib.contextmanager
def failures():
    """Turns TensorFlow's errors of lost ranks into Horovod's, at which it restarts."""
    from horovod.common.exceptions import HorovodInternalError

    try:
        yield
    except (tf.errors.UnknownError, tf.errors.AbortedError) as error:
        if "Horovod" not in str(error):
            raise
        raise HorovodInternalError(str(error)) from error
    except PeerLost as error:
        raise HorovodInternalError(str(error)) from error


def from_rank(root, values):
    """The list of arrays of a rank, on all ranks, where they have the same shapes."""
    return [
        horovod.broadcast(tf.constant(value), root, f"gsnr.elastic.{index}").numpy()
        for index, value in enumerate(values)
    ]


def of_all_ranks(value):
    """List of what each rank passed, a picklable object."""
    return horovod.load().allgather_object(value, name="gsnr.elastic.object")
