"""Sends the lab requests in the forms of clients in use, through pywinrm: python pywinrm_forms.py PORT USER PASSWORD VM

Envelopes are written by hand: only the headers that a client of openwsman sends; white space around a URI, parameters in the
namespace of the protocol, a Pull that names another class, as virt-who does. Prints one line for each form.
"""

import sys
import uuid
import warnings
import xml.etree.ElementTree as ElementTree

import winrm.protocol
from winrm.exceptions import WinRMError

warnings.simplefilter("ignore")
port, user, password, vm_name = sys.argv[1:5]
WMI = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2"
SPACES = {
    "s": "http://www.w3.org/2003/05/soap-envelope",
    "a": "http://schemas.xmlsoap.org/ws/2004/08/addressing",
    "n": "http://schemas.xmlsoap.org/ws/2004/09/enumeration",
    "w": "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd",
}
ANONYMOUS = f"{SPACES['a']}/role/anonymous"
client = winrm.protocol.Protocol(
    f"http://127.0.0.1:{port}/wsman",
    transport="ntlm",
    username=user,
    password=password,
    message_encryption="always",
    server_cert_validation="ignore",
)


def ask(action, resource, body, more=""):
    """The body of the answer, or the subcode of the fault."""
    spaces = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in SPACES.items())
    envelope = (
        f'<?xml version="1.0" encoding="UTF-8"?><s:Envelope {spaces}><s:Header>'
        f'<a:Action s:mustUnderstand="true">{action}</a:Action><a:To s:mustUnderstand="true">http://127.0.0.1:{port}/wsman</a:To>'
        f'<w:ResourceURI s:mustUnderstand="true">{resource}</w:ResourceURI>'
        f'<a:MessageID s:mustUnderstand="true">uuid:{uuid.uuid4()}</a:MessageID>'
        f"<a:ReplyTo><a:Address>{ANONYMOUS}</a:Address></a:ReplyTo>{more}</s:Header><s:Body>{body}</s:Body></s:Envelope>"
    )
    try:
        answer = client.send_message(envelope)
    except WinRMError as error:
        return f"fault {getattr(error, 'fault_subcode', None) or getattr(error, 'fault_code', None)}"
    if isinstance(answer, str):
        answer = answer.encode()
    return ElementTree.fromstring(answer).find("s:Body", SPACES)[0]


def enumerate_all(wql, enumerate_uri, pull_uri, pull=""):
    """Every item, one Pull after the other, and how many Pulls it took."""
    query = f'<n:Enumerate><w:Filter Dialect="http://schemas.microsoft.com/wbem/wsman/1/WQL">{wql}</w:Filter></n:Enumerate>'
    answer = ask(f"{SPACES['n']}/Enumerate", enumerate_uri, query)
    context = answer[0]
    assert context.tag == f"{{{SPACES['n']}}}EnumerationContext", answer
    items, pulls = [], 0
    while context is not None:
        body = f"<n:Pull><n:EnumerationContext>{context.text}</n:EnumerationContext>{pull}</n:Pull>"
        answer = ask(f"{SPACES['n']}/Pull", pull_uri, body)
        items += list(answer.find("n:Items", SPACES))
        context = answer.find("n:EnumerationContext", SPACES)
        pulls += 1
    return items, pulls


systems, pulls = enumerate_all("select * from Msvm_ComputerSystem where Name != __SERVER ", f"{WMI}/*", f"{WMI}/Msvm_ComputerSystem")
print("openwsman", len(systems), "items in", pulls, "pulls")
name = f"{{{WMI}/Msvm_ComputerSystem}}"
vm = next(row.find(f"{name}Name").text for row in systems if row.find(f"{name}ElementName").text == vm_name)
lower = enumerate_all(f'select * from Msvm_ComputerSystem where Name = "{vm.lower()}" ', f"{WMI}/*", f"{WMI}/Msvm_ComputerSystem")
print("lower case", len(lower[0]))
settings, _ = enumerate_all(
    "select BIOSGUID, ElementName from Msvm_VirtualSystemSettingData where VirtualSystemType = 'Microsoft:Hyper-V:System:Realized'",
    f"\n   {WMI}/*\n   ",
    f"\n   {WMI.removesuffix('/v2')}/*\n   ",
)
fragment = settings[0]
print("fragment", fragment.tag == f"{{{SPACES['w']}}}XmlFragment", sorted(child.tag for child in fragment))
print("no namespace", ask(f"{SPACES['n']}/Enumerate", f"{WMI.removesuffix('/v2')}/*", '<n:Enumerate><w:Filter Dialect="http://schemas.microsoft.com/wbem/wsman/1/WQL">select * from X</w:Filter></n:Enumerate>'))
vsms = f"{WMI}/Msvm_VirtualSystemManagementService"
selectors = (
    '<w:SelectorSet><w:Selector Name="CreationClassName">Msvm_VirtualSystemManagementService</w:Selector>'
    '<w:Selector Name="SystemCreationClassName">Msvm_ComputerSystem</w:Selector></w:SelectorSet>'
)
summaries = ask(
    f"{vsms}/GetSummaryInformation",
    f"\n  {vsms}\n ",
    f'<w:GetSummaryInformation_INPUT xmlns:p="{vsms}"><p:RequestedInformation>0</p:RequestedInformation>'
    "<p:RequestedInformation>1</p:RequestedInformation><p:RequestedInformation>100</p:RequestedInformation></w:GetSummaryInformation_INPUT>",
    selectors,
)
state = f"{{{WMI}/Msvm_SummaryInformation}}EnabledState"
print("summaries", len([element for element in summaries if element.tag.endswith("}SummaryInformation") and element.find(state) is not None]))
references = ask(
    f"{SPACES['n']}/Enumerate",
    f"{WMI}/*",
    "<n:Enumerate><w:OptimizeEnumeration/><w:MaxElements>50</w:MaxElements><w:EnumerationMode>EnumerateEPR</w:EnumerationMode>"
    f'<w:Filter Dialect="http://schemas.microsoft.com/wbem/wsman/1/WQL">select * from Msvm_ComputerSystem where Name = "{vm}"</w:Filter></n:Enumerate>',
)
reference = references.find("w:Items/a:EndpointReference", SPACES)
keys = sorted(element.get("Name") for element in reference.iter(f"{{{SPACES['w']}}}Selector") if not element.get("Name").startswith("__"))
print("reference", keys)
of_vm = f'<w:SelectorSet><w:Selector Name="CreationClassName">Msvm_ComputerSystem</w:Selector><w:Selector Name="Name">{vm}</w:Selector></w:SelectorSet>'
state_change = ask(
    f"{WMI}/Msvm_ComputerSystem/RequestStateChange",
    f"{WMI}/Msvm_ComputerSystem",
    f'<p:RequestStateChange_INPUT xmlns:p="{WMI}/Msvm_ComputerSystem"><p:RequestedState>2</p:RequestedState></p:RequestStateChange_INPUT>',
    of_vm,
)
print("state", state_change.find(f"{name}ReturnValue").text)
print("small", ask(f"{SPACES['n']}/Enumerate", f"{WMI}/*", "<n:Enumerate/>", '<w:MaxEnvelopeSize s:mustUnderstand="true">8000</w:MaxEnvelopeSize>'))
print("unknown header", ask(f"{SPACES['n']}/Enumerate", f"{WMI}/Msvm_ComputerSystem", "<n:Enumerate/>", '<x:Odd xmlns:x="urn:x" s:mustUnderstand="true"/>'))
print("query on a class", ask(f"{SPACES['n']}/Enumerate", f"{WMI}/Msvm_ComputerSystem", '<n:Enumerate><w:Filter Dialect="http://schemas.microsoft.com/wbem/wsman/1/WQL">select * from Msvm_ComputerSystem</w:Filter></n:Enumerate>'))
