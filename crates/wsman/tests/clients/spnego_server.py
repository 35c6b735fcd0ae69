"""A small WinRM listener that is not ours: python spnego_server.py MODE, with NTLM_USER_FILE in the environment.

Logs in through pyspnego, answers sealed bodies with `<echo>…</echo>` around them. Prints its port first.
MODE is `exact` (as Windows frames), or what some servers do: `plain-lines` (no tabs), `spaced` (`-- Encrypted Boundary`),
`chunked`, `forged`
(a wrong signature), `open` (answers that are not sealed), `forgetful` (every third request gets 401).
"""

import base64
import http.server
import re
import struct
import sys

import spnego

MODE = sys.argv[1]
BOUNDARY = b"--Encrypted Boundary"


def unframe(body):
    parts = re.split(rb"--\s*Encrypted Boundary", body, maxsplit=2)
    length = int(re.search(rb"Length=(\d+)", parts[1]).group(1))
    data = parts[2].split(b"application/octet-stream\r\n", 1)[1]
    header_length = struct.unpack("<i", data[:4])[0]
    header = data[4:4 + header_length]
    data = data[4 + header_length:4 + header_length + length]
    assert body.endswith(data + b"--Encrypted Boundary--\r\n"), "framed as Windows frames"
    return header, data


def frame(plain, header, data):
    tab = b"" if MODE == "plain-lines" else b"\t"
    boundary = b"-- Encrypted Boundary" if MODE == "spaced" else BOUNDARY
    gap = b"\r\n" if MODE == "spaced" else b""
    return b"".join([
        boundary, b"\r\n",
        tab, b"Content-Type: application/HTTP-SPNEGO-session-encrypted\r\n",
        tab, b"OriginalContent: type=application/soap+xml;charset=UTF-8;Length=", str(len(plain)).encode(), b"\r\n",
        boundary, b"\r\n",
        tab, b"Content-Type: application/octet-stream\r\n",
        struct.pack("<i", len(header)), header, data, gap,
        boundary, b"--\r\n",
    ])


class Conversation(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    context = None
    requests = 0

    def log_message(self, *_):
        pass

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if MODE == "chunked" and body:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(body), 7):
                piece = body[at:at + 7]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        authorization = self.headers.get("Authorization")
        if authorization:
            token = base64.b64decode(authorization.split(" ", 1)[1])
            if self.context is None or self.context.complete:
                self.context = spnego.server(hostname="localhost", service="http", options=spnego.NegotiateOptions.use_negotiate)
            try:
                out = self.context.step(token)
            except Exception:
                self.context = None
                return self.answer(401, [("WWW-Authenticate", "Negotiate")])
            headers = [("WWW-Authenticate", "Negotiate " + base64.b64encode(out).decode())] if out else []
            return self.answer(200 if self.context.complete else 401, headers)
        self.requests += 1
        if self.context is None or not self.context.complete or (MODE == "forgetful" and self.requests % 3 == 0):
            self.context = None
            return self.answer(401, [("WWW-Authenticate", "Negotiate")])
        asked = self.context.unwrap_winrm(*unframe(body))
        plain = b"<echo>" + asked + b"</echo>"
        if MODE == "open":
            return self.answer(200, [("Content-Type", "application/soap+xml;charset=UTF-8")], plain)
        sealed = self.context.wrap_winrm(plain)
        header = sealed.header
        if MODE == "forged":
            header = header[:8] + bytes([header[8] ^ 1]) + header[9:]
        kind = 'multipart/encrypted;protocol="application/HTTP-SPNEGO-session-encrypted";boundary="Encrypted Boundary"'
        self.answer(200, [("Content-Type", kind)], frame(plain, header, sealed.data))


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Conversation)
print(server.server_port, flush=True)
server.serve_forever()
