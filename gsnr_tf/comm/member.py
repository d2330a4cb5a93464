"""The processes of a job as each of them sees the others: where and how to ask them."""

import dataclasses
import os
import platform
import socket
import uuid
from pathlib import Path

from gsnr_tf.comm import server

# A rank that is asked for nothing but a word, and is not stopped, answers at once.
_WORD_SECONDS = 5


@dataclasses.dataclass
class Member:
    """A rank that may be asked.

    Attributes:
        addresses: List of (address, port), the likeliest first; one of them once it is
            known which of them works.
        secret: What every question must begin with.
        name: That of the share of this rank.
    """

    addresses: list
    secret: bytes
    name: str

    def ask(self, question, patience=_WORD_SECONDS):
        """See `server.ask`; an OSError tells of each address that was tried."""
        failures = []
        for address in list(self.addresses):
            try:
                answer = server.ask(address, self.secret, question, patience)
            except server.Refused:
                self.addresses = [address]
                raise
            except OSError as error:
                failures.append((address, error))
                continue
            self.addresses = [address]
            return answer
        if all(isinstance(error, ConnectionRefusedError) for _, error in failures):
            kind: type[OSError] = ConnectionRefusedError
        elif any(isinstance(error, TimeoutError) for _, error in failures):
            kind = TimeoutError
        else:
            kind = OSError
        raise kind("; ".join(f"{host}:{port}: {e}" for (host, port), e in failures))


def host():
    """What is equal for two processes if they can meet at 127.0.0.1."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return platform.node(), uuid.getnode()


def addresses(one_host):
    """Where to listen: no further than the job reaches.

    Args:
        one_host: Whether all ranks are on this host.

    Returns:
        List of IPv4 addresses: that of the interface which the launcher gave to Gloo;
        all of this host where it named none.
    """
    if one_host:
        return ["127.0.0.1"]
    import psutil  # comes with Horovod

    by_interface = {
        name: [a.address for a in known if a.family == socket.AF_INET]
        for name, known in psutil.net_if_addrs().items()
    }
    chosen = by_interface.get(os.environ.get("HOROVOD_GLOO_IFACE"))
    if chosen:
        return chosen
    everywhere = [address for known in by_interface.values() for address in known]
    outside = [address for address in everywhere if not address.startswith("127.")]
    return outside or ["127.0.0.1"]
