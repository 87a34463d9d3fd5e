"""Hosts to test with, all on this machine: network namespaces on one switch, each with an address of its own.

    with Hosts(2) as hosts:
        hosts.begin(1, [...], log)      # a command on the second host
        hosts.cut(1)                    # its cable is pulled: nothing is refused, nothing comes back
        hosts.begin_anew(1)

Linux only, and only for root. Whatever happens, the namespaces and all processes in them are gone afterwards.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PORT = 29400
_OUTER, _INNER = "port", "eth0"


class Impossible(Exception):
    """No such hosts can be had here; the text tells why."""


class Hosts:
    """So many hosts. They share this machine's disks and processors, and nothing else."""

    def __init__(self, count: int) -> None:
        own = secrets.token_hex(2)
        self.switch, self.names = f"df-{own}-switch", [f"df-{own}-{place}" for place in range(count)]

    def __enter__(self) -> Hosts:
        try:
            _ip("netns", "add", self.switch)
            _ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
            _ip("-n", self.switch, "link", "set", "switch", "up")
            for place in range(len(self.names)):
                self._make(place)
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__(None, None, None)
            said = (getattr(error, "stderr", None) or str(error)).strip()
            raise Impossible(
                f"network namespaces cannot be made here (Linux, root and iproute2 are needed): {said}"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in range(len(self.names)):
            self.kill(place)
        for name in (*self.names, self.switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def address(self, place: int) -> str:
        return f"10.77.0.{place + 1}"

    def begin(self, place: int, command: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command there. log: where its words go, after those of earlier ones"""
        own = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": _INNER, **environment}
        with open(log, "ab") as words:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.names[place], *command], stdout=words, stderr=words, env=own,
                start_new_session=True,
            )  # fmt: skip

    def cut(self, place: int) -> None:
        """Pull the host's cable out of the switch."""
        _ip("-n", self.switch, "link", "set", f"{_OUTER}{place}", "down")

    def begin_anew(self, place: int) -> None:
        """Its power off and on again, and the cable in: no process and no connection is left of before."""
        self.kill(place)
        # The cable first: connections with something unsent outlive their processes, and the namespace with them.
        _ip("-n", self.switch, "link", "delete", f"{_OUTER}{place}")
        _ip("netns", "delete", self.names[place])
        self._make(place)

    def _make(self, place: int) -> None:
        name, outer = self.names[place], f"{_OUTER}{place}"
        _ip("netns", "add", name)
        _ip("-n", self.switch, "link", "add", outer, "type", "veth", "peer", "name", _INNER, "netns", name)
        _ip("-n", self.switch, "link", "set", outer, "master", "switch", "up")
        _ip("-n", name, "address", "add", f"{self.address(place)}/24", "dev", _INNER)
        for link in ("lo", _INNER):
            _ip("-n", name, "link", "set", link, "up")

    def processes(self, place: int) -> list[int]:
        """What runs there."""
        told = subprocess.run(["ip", "netns", "pids", self.names[place]], capture_output=True, text=True, check=False)
        return [int(pid) for pid in told.stdout.split()]

    def kill(self, place: int) -> int:
        """End all that runs there, as when its power fails. Returns how many processes that were"""
        killed = set[int]()
        for _ in range(100):  # one of them may just be starting another
            found = self.processes(place)
            if not found:
                break
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.05)
        return len(killed)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout
