"""Two hosts of their own on one machine: network namespaces, and a wire between them that can be slow, cut and mended.

The kernel's own delays (netem) are not everywhere: the wire is this process, which reads packets from one TUN device and
writes them to the other. Needs root and Linux.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import threading
import time
from collections import deque
from typing import Any

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
DEVICE = "wire"


class Wire:
    """hosts: the namespaces' names. delay: seconds each way. rate: bytes a second each way. bytes: of packets that went."""

    addresses = "10.87.0.1", "10.87.0.2"

    def __init__(self, delay: float = 0.0, rate: float = float("inf")):
        self.delay, self.rate, self.up, self.bytes = delay, rate, True, 0
        self.hosts = [f"zoedge-{os.getpid()}-{i}" for i in range(2)]
        self._fds: list[int] = []
        self._end = False

    @staticmethod
    def possible() -> bool:
        return (
            os.path.exists("/dev/net/tun")
            and hasattr(os, "geteuid")
            and os.geteuid() == 0
            and ip("-V", check=False) == 0
        )

    def __enter__(self) -> Wire:
        for i, host in enumerate(self.hosts):
            ip("netns", "add", host)
            self._fds.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            name = f"zt{os.getpid() % 100000}-{i}"
            fcntl.ioctl(self._fds[i], TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
            ip("link", "set", name, "netns", host, "name", DEVICE)
            ip("-n", host, "addr", "add", f"{self.addresses[i]}/24", "dev", DEVICE)
            ip("-n", host, "link", "set", DEVICE, "up")
            ip("-n", host, "link", "set", "lo", "up")
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._end = True
        self._thread.join()
        for fd in self._fds:
            os.close(fd)
        for host in self.hosts:
            ip("netns", "del", host, check=False)

    def inside(self, host: int) -> list[str]:
        """What a command on that host begins with."""
        return [
            "ip",
            "netns",
            "exec",
            self.hosts[host],
            "env",
            f"GLOO_SOCKET_IFNAME={DEVICE}",
            f"TP_SOCKET_IFNAME={DEVICE}",
        ]

    def _carry(self) -> None:
        under_way: deque[tuple[float, int, bytes]] = deque()
        free = [0.0, 0.0]  # when each direction has sent what it holds
        while not self._end:
            ready, _, _ = select.select(self._fds, [], [], 0.001 if under_way else 0.05)
            now = time.monotonic()
            for fd in ready:
                packet, way = os.read(fd, 1 << 16), self._fds.index(fd)
                if self.up and packet[0] >> 4 == 4:  # IPv6 only looks for neighbours
                    free[way] = max(now, free[way]) + len(packet) / self.rate
                    under_way.append((free[way] + self.delay, self._fds[1 - way], packet))
                    self.bytes += len(packet)
            while under_way and under_way[0][0] <= now:
                _, to, packet = under_way.popleft()
                if self.up:
                    os.write(to, packet)


def ip(*words: str, check: bool = True) -> int:
    try:
        return subprocess.run(["ip", *words], check=check, capture_output=True).returncode
    except FileNotFoundError:
        return 127
