"""Asks our server through pywinrm: python pywinrm_client.py URL TRANSPORT USER PASSWORD ENCRYPTION SIZES…

Each request is an envelope with that many characters in it. Prints the answers' bodies, one a line, or `error: TYPE`.
"""

import sys
import warnings
import xml.etree.ElementTree as ElementTree

import winrm.protocol

warnings.simplefilter("ignore")
url, transport, user, password, encryption = sys.argv[1:6]
client = winrm.protocol.Protocol(
    url,
    transport=transport,
    username=user,
    password=password,
    message_encryption=encryption,
    server_cert_validation="ignore",
)
SOAP = "http://www.w3.org/2003/05/soap-envelope"
try:
    for size in sys.argv[6:]:
        answer = client.send_message(
            f'<s:Envelope xmlns:s="{SOAP}" xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing">'
            f'<s:Header><a:MessageID>uuid:1</a:MessageID></s:Header>'
            f'<s:Body><Selector>{"ü" * int(size)}</Selector></s:Body></s:Envelope>'
        )
        print(ElementTree.fromstring(answer).find(f"{{{SOAP}}}Body")[0].text)
except Exception as error:  # whatever it is, the test wants its name
    print(f"error: {type(error).__name__}")
