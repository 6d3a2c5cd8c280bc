"""A visitor of a WSGI callable, without a server between."""

import base64
import json
from urllib.parse import quote, unquote_to_bytes
from wsgiref.validate import validator


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = int(status[:3]), dict(headers), body

    def json(self):
        return json.loads(self.body)

    @property
    def text(self):
        return self.body.decode()


class Visitor:
    """Asks a WSGI callable as a browser would, and has wsgiref check both sides' manners."""

    def __init__(self, app, *, host="localhost", login=None, prefix=""):
        self.app = validator(app)
        self.host, self.login, self.prefix = host, login, prefix

    def __call__(self, address, method="GET", **headers):
        path, _, query = address.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": self.prefix,
            "PATH_INFO": unquote_to_bytes(path.encode()).decode("latin-1"),
            "QUERY_STRING": query,
            "HTTP_HOST": self.host,
            "SERVER_NAME": self.host,
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": _Empty(),
            "wsgi.errors": _Empty(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **{f"HTTP_{name.upper()}": value for name, value in headers.items()},
        }
        if self.login is not None:
            environ["HTTP_AUTHORIZATION"] = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        seen = []

        def start(status, headers, exc_info=None):
            seen.append((status, headers))
            return lambda data: None

        answer = self.app(environ, start)
        body = b"".join(answer)
        answer.close()
        return Reply(*seen[0], body)


class _Empty:
    """A request without a body, and a log that nobody reads."""

    def read(self, size=-1):
        return b""

    def readline(self, size=-1):
        return b""

    def readlines(self, hint=-1):
        return []

    def __iter__(self):
        return iter(())

    def flush(self):
        pass

    def write(self, text):
        pass

    def writelines(self, lines):
        pass


def quoted(name):
    return quote(name, safe="")
