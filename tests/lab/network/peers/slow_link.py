"""Join two namespaces by a pair of TAP devices, and delay or drop frames: netem in user space.

Arguments: IP NAMESPACE DEVICE BRIDGE PEER MAC DELAY LOSS. DEVICE appears in NAMESPACE on BRIDGE, ``eth0`` with MAC in
PEER. IP is the path of ip(8), DELAY is in seconds each way, LOSS is a fraction from 0 to 1. ARP and neighbor discovery
are never lost, because the link itself is not slow; the path behind it is.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_ARP, _IPV6, _ICMPV6 = b"\x08\x06", b"\x86\xdd", 58
_NEIGHBOR_DISCOVERY = range(133, 138)  # RFC 4861, section 4
_FRAME = 2048


def open_tap(namespace: str, device: str) -> int:
    """Move this process into a namespace and create a TAP device there; its file descriptor works from anywhere."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(target, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(target)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH14x", device.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap


def relay(one: int, other: int, delay: float, loss: float) -> None:
    """Relay frames both ways forever. The seed is fixed: which packets are lost depends only on their order."""
    rnd = random.Random(1)  # noqa: S311
    waiting: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([one, other], [], [], timeout)
        now = time.monotonic()
        for tap in readable:
            for frame in _read_all(tap):
                if _finds_neighbors(frame) or rnd.random() >= loss:
                    count += 1  # keeps the order of frames that are due at the same time
                    heapq.heappush(waiting, (now + delay, count, other if tap == one else one, frame))
        while waiting and waiting[0][0] <= now:
            _, _, tap, frame = heapq.heappop(waiting)
            try:
                os.write(tap, frame)
            except OSError:  # the other device is down or full: the frame is lost, as on a wire
                continue


def _finds_neighbors(frame: bytes) -> bool:
    kind = frame[12:14]
    return kind == _ARP or (kind == _IPV6 and frame[20] == _ICMPV6 and frame[54] in _NEIGHBOR_DISCOVERY)


def _read_all(tap: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < 64:
        try:
            frames.append(os.read(tap, _FRAME))
        except BlockingIOError:
            break
    return frames


def main() -> None:
    """Create both devices, then relay."""
    ip, namespace, device, bridge, peer, mac, delay, loss = sys.argv[1:]
    near = open_tap(namespace, device)
    subprocess.run([ip, "link", "set", device, "master", bridge, "up"], check=True)
    far = open_tap(peer, "eth0")
    subprocess.run([ip, "link", "set", "eth0", "address", mac, "up"], check=True)
    relay(near, far, float(delay), float(loss))


if __name__ == "__main__":
    main()
