"""Serves the listening socket on its standard input, and ends when nobody has come for a while."""

import socket

listener = socket.socket(fileno=0)
listener.settimeout(5)
try:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
except TimeoutError:
    pass  # Exit with 0: the manager watches the socket again.
