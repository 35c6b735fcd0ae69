"""Logs in to our server with NTLM as the second choice: python spnego_fallback.py PORT USER PASSWORD signed|unsigned

pyspnego offers Kerberos first (with a token that is none), is told to use NTLM, and starts NTLM then. `unsigned` strikes the
signature of the list of mechanisms from the last token, as somebody would who struck Kerberos from the list. Prints the body of the answer
to one sealed request, or the status that refused.
"""

import base64
import http.client
import struct
import sys

import spnego
from spnego._context import GSSMech
from spnego._spnego import NegTokenResp, unpack_token

port, user, password, mode = sys.argv[1:5]
client = spnego.client(user, password, hostname="localhost", service="http", options=spnego.NegotiateOptions.use_negotiate)
generated = {}
rebuild = client._rebuild_context_list


def kerberos_first(*arguments, **named):
    offered = rebuild(*arguments, **named)
    generated.update(client._context_list)
    return [GSSMech.kerberos.value] + offered


client._rebuild_context_list = kerberos_first
connection = http.client.HTTPConnection("localhost", int(port))


def post(headers, body=b""):
    connection.request("POST", "/wsman", body, headers)
    answer = connection.getresponse()
    return answer.status, answer.getheader("WWW-Authenticate", ""), answer.read()


token = client.step()
status = None
while True:
    status, offered, _ = post({"Authorization": "Negotiate " + base64.b64encode(token).decode()})
    if status != 401 or " " not in offered:
        break
    answer = base64.b64decode(offered.split(" ")[1])
    if unpack_token(answer).supported_mech:
        client._context_list.update(generated)
    token = client.step(answer)
    mic = getattr(unpack_token(token), "mech_list_mic", None)
    if mic and mode == "unsigned":
        token = NegTokenResp(neg_state=None, response_token=unpack_token(token).response_token).pack()
if status != 200:
    print(status)
    sys.exit()
client.step(base64.b64decode(offered.split(" ")[1]))
assert client.complete, "the server signs the list, too"

plain = b"<s:Envelope><a:MessageID>uuid:1</a:MessageID></s:Envelope>"
sealed = client.wrap_winrm(plain)
PART = "application/HTTP-SPNEGO-session-encrypted"
body = b"".join([
    b"--Encrypted Boundary\r\n\tContent-Type: ", PART.encode(), b"\r\n",
    b"\tOriginalContent: type=application/soap+xml;charset=UTF-8;Length=", str(len(plain)).encode(), b"\r\n",
    b"--Encrypted Boundary\r\n\tContent-Type: application/octet-stream\r\n",
    struct.pack("<i", len(sealed.header)), sealed.header, sealed.data, b"--Encrypted Boundary--\r\n",
])
kind = f'multipart/encrypted;protocol="{PART}";boundary="Encrypted Boundary"'
status, _, body = post({"Content-Type": kind}, body)
binary = body.split(b"application/octet-stream\r\n", 1)[1]
binary = binary[: -len(b"--Encrypted Boundary--\r\n")]
length = struct.unpack("<i", binary[:4])[0]
print(status, client.unwrap_winrm(binary[4:4 + length], binary[4 + length:]).decode())
