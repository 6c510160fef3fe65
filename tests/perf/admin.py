"""The admin API of a gateway, for measurements."""

import http.client
import json
import socket
import sys


class Connection(http.client.HTTPConnection):
    """To the admin API, on its socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=120)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)

    def ask(self, method, path, body=None):
        headers = {} if method == "GET" else {"content-type": "application/json"}
        self.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self.getresponse()
        told = answer.read()
        if answer.status >= 300:
            sys.exit(f"{method} {path}: {answer.status} {told.decode()}")
        return json.loads(told)
