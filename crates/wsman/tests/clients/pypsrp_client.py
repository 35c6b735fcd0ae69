"""Asks our server through pypsrp: python pypsrp_client.py PORT USER PASSWORD AUTH ENCRYPTION http|https SIZES…

Each request carries a selector of that many characters; the answer's body has to say how long the selector was.
Prints one line for each answer, or `error: TYPE`.
"""

import sys
import warnings

from pypsrp.wsman import WSMan, SelectorSet

warnings.simplefilter("ignore")
port, user, password, auth, encryption, line = sys.argv[1:7]
client = WSMan(
    "localhost",
    port=int(port),
    ssl=line == "https",
    username=user,
    password=password,
    auth=auth,
    encryption=encryption,
    cert_validation=False,
)
try:
    for size in sys.argv[7:]:
        selectors = SelectorSet()
        selectors.add_option("Name", "ü" * int(size))
        body = client.get("http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/Msvm_X", selector_set=selectors)
        print(body[0].text)
except Exception as error:  # whatever it is, the test wants its name
    print(f"error: {type(error).__name__}")
