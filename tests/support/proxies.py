"""A small reverse proxy: shows a server under a path, as a big one in front of many would."""

import http.client
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@contextmanager
def proxied(port, prefix, *, strips):
    """Show a server of this box under a path of another port; yield its address, and the paths that were not its.

    Args:
        strips: whether the server gets paths without the prefix.
    """
    strays = []

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            """Say nothing of a browser that has left in the middle."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if not (self.path == prefix or self.path.startswith((f"{prefix}/", f"{prefix}?"))):
                strays.append(self.path)
                self.send_error(404)
                return
            path = (self.path.removeprefix(prefix) or "/") if strips else self.path
            server = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            hop = ("connection", "keep-alive", "proxy-connection")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in hop}
            server.request(self.command, path, headers={**headers, "X-Forwarded-For": self.client_address[0]})
            reply = server.getresponse()
            body = reply.read()
            server.close()
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in (*hop, "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = Quiet(("127.0.0.1", 0), Proxy)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{prefix}", strays
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
