"""Gets ready, says so, and keeps saying that it is alive: the protocol of sd_notify(3), without a library."""

import os
import socket
import time


def notify(text):
    address = os.environ["NOTIFY_SOCKET"]
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(text.encode(), address)


time.sleep(0.2)  # Load a model, connect to a database, ...
notify("READY=1\nSTATUS=waiting for work")
interval = int(os.environ["WATCHDOG_USEC"]) / 1_000_000
while True:
    time.sleep(interval / 3)
    notify("WATCHDOG=1")
