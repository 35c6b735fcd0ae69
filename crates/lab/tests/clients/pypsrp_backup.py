"""Drives a VM of the lab through pypsrp as a backup would: python pypsrp_backup.py PORT USER PASSWORD VM

WQL with pulls, get by keys, methods with references and embedded instances, a job polled to its end, faults; everything
sealed by NTLM. Prints one line for each step; any surprise ends it with a traceback.
"""

import sys
import warnings
import xml.etree.ElementTree as ElementTree

from pypsrp.exceptions import WSManFaultError
from pypsrp.wsman import NAMESPACES, SelectorSet, WSMan

warnings.simplefilter("ignore")
port, user, password, vm_name = sys.argv[1:5]
WMI = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2"
WSM = NAMESPACES["wsman"]
ENUM = NAMESPACES["wsen"]
ADDR = NAMESPACES["wsa"]
CIM = "http://schemas.dmtf.org/wbem/wscim/1/common"

client = WSMan("127.0.0.1", port=int(port), ssl=False, username=user, password=password, auth="negotiate", encryption="always")


def selectors(**keys):
    chosen = SelectorSet()
    for name, value in keys.items():
        chosen.add_option(name, value)
    return chosen


def local(element):
    return element.tag.rsplit("}", 1)[-1]


def text(element, name):
    found = [child for child in element if local(child) == name]
    return found[0].text if found else None


def texts(element, name):
    return [child.text for child in element if local(child) == name]


def query(wql, elements=2):
    """Everything that a query gives, pulled few at a time."""
    body = ElementTree.Element(f"{{{ENUM}}}Enumerate")
    ElementTree.SubElement(body, f"{{{WSM}}}OptimizeEnumeration")
    ElementTree.SubElement(body, f"{{{WSM}}}MaxElements").text = str(elements)
    filter_element = ElementTree.SubElement(body, f"{{{WSM}}}Filter", Dialect="http://schemas.microsoft.com/wbem/wsman/1/WQL")
    filter_element.text = wql
    answer = client.enumerate(f"{WMI}/*", resource=body)[0]
    items = [item for part in answer if local(part) == "Items" for item in part]
    while not any(local(part) == "EndOfSequence" for part in answer):
        pull = ElementTree.Element(f"{{{ENUM}}}Pull")
        ElementTree.SubElement(pull, f"{{{ENUM}}}EnumerationContext").text = text(answer, "EnumerationContext")
        ElementTree.SubElement(pull, f"{{{ENUM}}}MaxElements").text = str(elements)
        answer = client.pull(f"{WMI}/*", resource=pull)[0]
        items += [item for part in answer if local(part) == "Items" for item in part]
    return items


def get(class_name, **keys):
    return client.get(f"{WMI}/{class_name}", selector_set=selectors(**keys))[0]


def invoke(class_name, method, parameters, **keys):
    """Parameters: a text, or a pair of class and keys for a reference."""
    uri = f"{WMI}/{class_name}"
    body = ElementTree.Element(f"{{{uri}}}{method}_INPUT")
    for name, value in parameters:
        element = ElementTree.SubElement(body, f"{{{uri}}}{name}")
        if isinstance(value, str):
            element.text = value
            continue
        ElementTree.SubElement(element, f"{{{ADDR}}}Address").text = "http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous"
        reference = ElementTree.SubElement(element, f"{{{ADDR}}}ReferenceParameters")
        ElementTree.SubElement(reference, f"{{{WSM}}}ResourceURI").text = f"{WMI}/{value[0]}"
        selector_set = ElementTree.SubElement(reference, f"{{{WSM}}}SelectorSet")
        for key, key_value in value[1].items():
            ElementTree.SubElement(selector_set, f"{{{WSM}}}Selector", Name=key).text = key_value
    return client.invoke(f"{uri}/{method}", uri, body, selector_set=selectors(**keys)).find("s:Body", NAMESPACES)[0]


def wait(output):
    """Polls the job of an answer; its last state and id."""
    assert text(output, "ReturnValue") == "4096", ElementTree.tostring(output)
    job = next(element for element in output.iter() if local(element) == "Job")
    found = {element.get("Name"): element.text for element in job.iter() if local(element) == "Selector"}
    uri = next(element.text for element in job.iter() if local(element) == "ResourceURI")
    for _ in range(10000):
        row = get(uri.rsplit("/", 1)[-1], InstanceID=found["InstanceID"])
        if text(row, "JobState") not in ("2", "3", "4"):
            return text(row, "JobState"), found["InstanceID"]
    raise AssertionError("the job never ends")


systems = query("SELECT * FROM Msvm_ComputerSystem WHERE Name != __SERVER", 1)
by_name = {text(row, "ElementName"): row for row in systems}
print("systems", len(systems) == len(by_name), vm_name in by_name)
vm = text(by_name[vm_name], "Name")
row = get("Msvm_ComputerSystem", CreationClassName="Msvm_ComputerSystem", Name=vm)
tags = [local(element) for element in row]
print("order", tags == sorted(tags), "nil", any(element.get(f"{{http://www.w3.org/2001/XMLSchema-instance}}nil") == "true" for element in row))
installed = next(element for element in row if local(element) == "InstallDate")
print("date", installed[0].tag == f"{{{CIM}}}Datetime")
state, _ = wait(invoke("Msvm_ComputerSystem", "RequestStateChange", [("RequestedState", "2")], CreationClassName="Msvm_ComputerSystem", Name=vm))
print("start", state)
settings = (
    '<INSTANCE CLASSNAME="Msvm_VirtualSystemSnapshotSettingData"><PROPERTY NAME="ConsistencyLevel" TYPE="uint8"><VALUE>2</VALUE></PROPERTY>'
    '<PROPERTY NAME="IgnoreNonSnapshottableDisks" TYPE="boolean"><VALUE>true</VALUE></PROPERTY></INSTANCE>'
)
system = ("Msvm_ComputerSystem", {"CreationClassName": "Msvm_ComputerSystem", "Name": vm})
parameters = [("AffectedSystem", system), ("SnapshotSettings", settings), ("SnapshotType", "32768")]
service = "Msvm_VirtualSystemSnapshotService"
state, job = wait(invoke(service, "CreateSnapshot", parameters, CreationClassName=service))
print("checkpoint", state)
made = query(f"ASSOCIATORS OF {{Msvm_ConcreteJob.InstanceID='{job}'}} WHERE AssocClass = Msvm_AffectedJobElement")
snapshot = next(row for row in made if local(row) == "Msvm_VirtualSystemSettingData")
print("kind", text(snapshot, "VirtualSystemType"))
identity = text(snapshot, "InstanceID")
disks = query(f"ASSOCIATORS OF {{Msvm_VirtualSystemSettingData.InstanceID='{identity}'}} WHERE ResultClass = Msvm_StorageAllocationSettingData")
print("files", all(texts(row, "HostResource")[0].lower().endswith((".vhdx", ".avhdx")) for row in disks), len(disks) > 0)
point = ("Msvm_VirtualSystemSettingData", {"InstanceID": identity})
state, _ = wait(invoke(service, "ConvertToReferencePoint", [("AffectedSnapshot", point)], CreationClassName=service))
print("converted", state)
points = query(f"SELECT * FROM Msvm_VirtualSystemReferencePoint WHERE VirtualSystemIdentifier = '{vm}'")
print("points", len(points), len(texts(points[0], "ResilientChangeTrackingIdentifiers")) == len(disks))
for name, ask in [
    ("half a key", lambda: get("Msvm_ComputerSystem", Name=vm)),
    ("gone", lambda: get("Msvm_VirtualSystemSettingData", InstanceID=identity)),
    ("bad query", lambda: query("SELECT * FROM Msvm_Nonsense")),
    ("no such method", lambda: invoke(service, "Nonsense", [], CreationClassName=service)),
    ("wrapped reference", lambda: invoke(service, "DestroySnapshot", [("AffectedSnapshot", "text")], CreationClassName=service)),
]:
    try:
        ask()
        print("no fault:", name)
    except WSManFaultError as fault:
        print("fault:", name, fault.code, fault.machine)
