//! The rarer forms of enumerations and requests, said to the service as clients in use say them.

use wsman::message::{FaultCode, Item, ResourceUri, read_answer, read_batch};
use wsman::server::ServiceOptions;
use wsman::xml::{Document, XmlLimits};

use crate::service::{ENUMERATION, GET, WMI, ask, envelope, fault, selectors};
use crate::shelf::{Shelf, Stand, affects, host, job, v2, vm};

fn stand() -> Stand {
    let mut instances = vec![host(), job(), affects(1), affects(2)];
    instances.extend((0..4).map(vm));
    let planned = vm(9);
    let mut planned = wsman::cim::CimInstance {
        class: "Msvm_PlannedComputerSystem".into(),
        ..planned
    };
    planned.properties.remove("InstallDate");
    instances.push(planned);
    Stand::new(Shelf::new(instances), ServiceOptions::default())
}

fn enumerate(target: &str, inner: &str) -> String {
    envelope(
        &format!("{WMI}/{target}"),
        &format!("{ENUMERATION}/Enumerate"),
        "",
        &format!(
            "<n:Enumerate><w:OptimizeEnumeration/><w:MaxElements>100</w:MaxElements>{inner}</n:Enumerate>"
        ),
    )
}

fn items(stand: &Stand, request: &str) -> Vec<Item> {
    let (status, text) = ask(&stand.service, request);
    assert_eq!(status, 200, "{text}");
    let document = Document::parse(&text, &XmlLimits::default()).expect("xml");
    let body = read_answer(&document, None).expect("an answer");
    let batch = read_batch(body, &v2(), None).expect("a batch");
    assert!(batch.is_last);
    batch.items
}

#[test]
fn paths_come_alone_or_beside_their_objects() {
    let stand = stand();
    let mode = |mode: &str| {
        enumerate(
            "Msvm_ComputerSystem",
            &format!("<w:EnumerationMode>{mode}</w:EnumerationMode>"),
        )
    };
    let references = items(&stand, &mode("EnumerateEPR"));
    assert_eq!(references.len(), 5);
    assert!(
        references
            .iter()
            .all(|it| matches!(it, Item::Reference(path) if path.keys.len() == 2))
    );
    let both = items(&stand, &mode("EnumerateObjectAndEPR"));
    assert!(
        both.iter()
            .all(|it| matches!(it, Item::Both(object, path) if path.names(object)))
    );
    assert_eq!(
        fault(&stand.service, &mode("Dance")).code,
        FaultCode::UnsupportedFeature
    );
    let strange = enumerate("Msvm_ComputerSystem", "<w:Strange/>");
    assert_eq!(
        fault(&stand.service, &strange).code,
        FaultCode::SchemaValidationError
    );
}

#[test]
fn subclasses_belong_to_a_class_unless_they_are_not_wanted() {
    let stand = stand();
    assert_eq!(items(&stand, &enumerate("CIM_ComputerSystem", "")).len(), 6);
    let alone = "<b:PolymorphismMode xmlns:b='http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd'>None</b:PolymorphismMode>";
    assert_eq!(
        items(&stand, &enumerate("CIM_ComputerSystem", alone)).len(),
        0
    );
    assert_eq!(
        items(&stand, &enumerate("Msvm_PlannedComputerSystem", alone)).len(),
        1
    );
}

#[test]
fn selectors_are_a_filter_too() {
    let stand = stand();
    let by = |name: &str, value: &str| {
        let set = selectors(&[(name, value)]);
        enumerate(
            "Msvm_ComputerSystem",
            &format!(
                "<w:Filter Dialect='http://schemas.dmtf.org/wbem/wsman/1/wsman/SelectorFilter'>{set}</w:Filter>"
            ),
        )
    };
    assert_eq!(items(&stand, &by("enabledstate", "2")).len(), 3);
    assert_eq!(items(&stand, &by("Name", "hv01")).len(), 1);
    assert_eq!(
        fault(&stand.service, &by("Nothing", "2")).code,
        FaultCode::CannotProcessFilter
    );
}

#[test]
fn associations_are_a_filter_too() {
    let stand = stand();
    let job = ResourceUri::class(&v2(), &"Msvm_ConcreteJob".into());
    let related = |kind: &str| {
        enumerate(
            "*",
            &format!(
                "<w:Filter Dialect='http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter'>\
                 <b:{kind} xmlns:b='http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd'><b:Object><a:Address>x</a:Address>\
                 <a:ReferenceParameters><w:ResourceURI>{job}</w:ResourceURI>{}</a:ReferenceParameters></b:Object>\
                 <b:AssociationClassName>Msvm_AffectedJobElement</b:AssociationClassName></b:{kind}></w:Filter>",
                selectors(&[("InstanceID", "9D4B")])
            ),
        )
    };
    let classes = |kind: &str| -> Vec<String> {
        items(&stand, &related(kind))
            .iter()
            .map(|item| match item {
                Item::Object(object) => object.class.to_string(),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(classes("AssociatedInstances"), ["Msvm_ComputerSystem"; 2]);
    assert_eq!(
        classes("AssociationInstances"),
        ["Msvm_AffectedJobElement"; 2]
    );
    let unknown = related("AssociatedInstances").replace("Msvm_AffectedJobElement", "Msvm_Nothing");
    assert_eq!(
        fault(&stand.service, &unknown).code,
        FaultCode::CannotProcessFilter
    );
}

#[test]
fn classes_are_also_named_as_dmtf_names_them() {
    let stand = stand();
    let uri = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/Msvm_ConcreteJob";
    let keys = selectors(&[
        ("InstanceID", "9D4B"),
        ("__cimnamespace", "root\\virtualization\\v2"),
    ]);
    let (status, text) = ask(&stand.service, &envelope(uri, GET, &keys, ""));
    assert_eq!(status, 200, "{text}");
    assert!(
        text.contains(&format!("xmlns:p=\"{uri}\"")),
        "in the form that was asked in"
    );
    let nowhere = envelope(uri, GET, &selectors(&[("InstanceID", "9D4B")]), "");
    assert_eq!(
        fault(&stand.service, &nowhere).code,
        FaultCode::DestinationUnreachable
    );
}

#[test]
fn nothing_is_changed_but_by_methods() {
    let stand = stand();
    let uri = format!("{WMI}/Msvm_ConcreteJob");
    let keys = selectors(&[("InstanceID", "9D4B")]);
    let put = |verb: &str| {
        let action = format!("http://schemas.xmlsoap.org/ws/2004/09/transfer/{verb}");
        let body = format!(
            "<p:Msvm_ConcreteJob xmlns:p='{uri}'><p:JobState>4</p:JobState></p:Msvm_ConcreteJob>"
        );
        fault(&stand.service, &envelope(&uri, &action, &keys, &body)).code
    };
    assert_eq!(put("Put"), FaultCode::UnsupportedFeature);
    assert_eq!(put("Create"), FaultCode::ActionNotSupported);
    assert_eq!(put("Delete"), FaultCode::ActionNotSupported);
}

#[test]
fn references_are_got_as_keys_of_associations() {
    let stand = stand();
    let all = items(
        &stand,
        &enumerate(
            "Msvm_AffectedJobElement",
            "<w:EnumerationMode>EnumerateEPR</w:EnumerationMode>",
        ),
    );
    let Some(Item::Reference(path)) = all.first() else {
        panic!("{all:?}");
    };
    let affected = path.key_value("AffectedElement").expect("a key");
    assert!(
        matches!(affected, wsman::cim::CimValue::Reference(it) if it.class == "Msvm_ComputerSystem")
    );
}
