"""Answers HTTP requests on the listening socket whose descriptor is the first argument."""

import os
import socket
import sys

listener = socket.fromfd(int(sys.argv[1]), socket.AF_INET, socket.SOCK_STREAM)
body = b"hello from pid %d\n" % os.getpid()
while True:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
