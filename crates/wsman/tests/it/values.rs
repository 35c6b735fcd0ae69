//! Values, paths, times and embedded instances: there and back again.

use std::time::Duration;

use proptest::prelude::*;
use wsman::ErrorKind;
use wsman::cim::embedded::{EmbeddedProblem, Extent, read, read_strict, write};
use wsman::cim::{
    CimDatetime, CimInstance, CimInterval, CimPath, CimType, CimValue, ClassName, Namespace,
};
use wsman::message::{Action, ReferenceForm, ResourceUri, read_instance, write_instance};
use wsman::schema::{ClassSchema, SchemaSet};
use wsman::xml::{Document, XmlLimits, XmlWriter};

use crate::shelf::{schemas, v2};

#[test]
fn times_are_read_in_both_spellings() {
    let micros = |text: &str| CimDatetime::parse(text).map(CimDatetime::unix_micros);
    assert_eq!(micros("1970-01-01T00:00:00Z"), Some(0));
    assert_eq!(micros("1970-01-01T01:00:00+01:00"), Some(0));
    assert_eq!(micros("19700101010000.000000+060"), Some(0));
    assert_eq!(micros("19691231190000.000000-300"), Some(0));
    assert_eq!(
        micros("2024-02-29T12:00:00.5Z"),
        Some(1_709_208_000_500_000)
    );
    assert_eq!(micros("2000-01-01T00:00:00"), Some(946_684_800_000_000));
    for bad in [
        "",
        "2023-02-29T00:00:00Z",
        "2024-13-01T00:00:00Z",
        "2024-01-01",
        "2024-01-01T24:00:00Z",
        "20240101000000.000000*000",
        "00000000003000.000000:000",
        "2024-01-01T00:00:00+99:00",
        "२०२४-01-01T00:00:00Z",
    ] {
        assert_eq!(micros(bad), None, "{bad}");
    }
    assert!(
        CimDatetime::parse("1601-01-01T00:00:00Z")
            .expect("a time")
            .is_none()
    );
    assert_eq!(CimDatetime::NONE.to_iso(), "1601-01-01T00:00:00Z");
    let span = |text: &str| CimInterval::parse(text).map(CimInterval::to_duration);
    assert_eq!(span("P0DT0H30M0S"), Some(Duration::from_secs(1800)));
    assert_eq!(span("PT1.5S"), Some(Duration::from_millis(1500)));
    assert_eq!(span("P1D"), Some(Duration::from_secs(86_400)));
    assert_eq!(
        span("00000001020304.500000:000"),
        Some(Duration::from_millis(93_784_500))
    );
    for bad in [
        "",
        "P",
        "PT",
        "P1Y",
        "P1M",
        "PT1",
        "-PT1S",
        "P999999999999D",
        "PT999999999999H",
    ] {
        assert_eq!(span(bad), None, "{bad}");
    }
}

#[test]
fn paths_are_read_in_the_spellings_that_hosts_use() {
    let parent = r#"\\HV01\root\virtualization\v2:Msvm_ResourceAllocationSettingData.InstanceID="Microsoft:0F1C\\83F8\\0\\0\\D""#;
    let (host, path) = CimPath::parse_with_host(parent, &Namespace::unspecified()).expect("a path");
    assert_eq!(host.as_deref(), Some("HV01"));
    assert_eq!(path.namespace, "ROOT/Virtualization/V2");
    assert_eq!(
        path.key("instanceID").as_deref(),
        Some(r"Microsoft:0F1C\83F8\0\0\D")
    );
    assert_eq!(path.to_text(Some("HV01")), parent);
    let single = r#"Msvm_ResourceAllocationSettingData.InstanceID="Microsoft:0f1c\83f8\0\0\D""#;
    let single = CimPath::parse(single, &v2()).expect("a path with single backslashes");
    assert!(single.is_same(&path), "both spellings are one path");
    let switch = r#"//HV01/root/virtualization/v2:Msvm_VirtualEthernetSwitch.CreationClassName="Msvm_VirtualEthernetSwitch",Name="A,\"B""#;
    let switch = CimPath::parse(switch, &Namespace::unspecified()).expect("slashes and two keys");
    assert_eq!(switch.key("Name").as_deref(), Some("A,\"B"));
    let other = CimPath::parse("X.A='q',B=5,C=TRUE,D=-3", &v2()).expect("kinds of values");
    assert_eq!(other.key_value("B"), Some(&CimValue::Uint(5)));
    assert_eq!(other.key_value("C"), Some(&CimValue::Boolean(true)));
    assert_eq!(other.key_value("D"), Some(&CimValue::Sint(-3)));
    for bad in [
        "",
        "X.",
        "X.A",
        "X.A=",
        "X.A='q",
        "X.A='q'B='c'",
        "\\\\H",
        "\\\\H\\root",
        "X.A=1,A=2",
        "1X",
        "a:b:c",
    ] {
        let error = CimPath::parse(bad, &v2()).expect_err(bad);
        assert_eq!(error.kind(), ErrorKind::Malformed, "{bad}");
    }
    let long = format!("X.A=\"{}\"", "a".repeat(40_000));
    assert!(CimPath::parse(&long, &v2()).is_err());
}

#[test]
fn uris_and_actions_are_read_without_case() {
    let class = ResourceUri::class(&v2(), &"Msvm_ConcreteJob".into());
    let text = class.to_string();
    assert_eq!(ResourceUri::parse(&text), Some(class.clone()));
    assert_eq!(
        ResourceUri::parse(&format!("\n {} ", text.to_uppercase())),
        Some(class.clone())
    );
    let all = ResourceUri::all(&v2());
    assert_eq!(ResourceUri::parse(&all.to_string()), Some(all));
    let old =
        ResourceUri::parse("http://schemas.microsoft.com/wbem/wsman/1/wmicimv2/Win32_Service")
            .expect("cimv2");
    assert_eq!(old.namespace, "root/cimv2");
    let dmtf = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/Msvm_ConcreteJob";
    let dmtf = ResourceUri::parse(dmtf).expect("dmtf");
    assert!(dmtf.namespace.is_unspecified());
    for bad in [
        "",
        "urn:x",
        "http://schemas.microsoft.com/wbem/wsman/1/wmi",
        "http://schemas.microsoft.com/wbem/wsman/1/wmi/x",
        "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/a b",
    ] {
        assert_eq!(ResourceUri::parse(bad), None, "{bad}");
    }
    let method = Action::Invoke {
        method: "GetError".to_owned(),
    };
    assert_eq!(Action::parse(&method.to_uri(&class), &class), Some(method));
    let other = ResourceUri::class(&v2(), &"Msvm_StorageJob".into());
    assert_eq!(
        Action::parse(&format!("{other}/GetError"), &class),
        None,
        "another class's method"
    );
}

#[test]
fn getters_say_class_and_property() {
    let instance = CimInstance::new("Msvm_X")
        .with("Text", "x")
        .with("Many", vec![1_u8, 2]);
    for error in [
        instance.u64("Text").expect_err("no number"),
        instance.bool("Text").expect_err("no boolean"),
        instance.opt_datetime("Text").expect_err("no time"),
        instance.text("Text2").expect_err("absent"),
        instance.text("Many").expect_err("an array"),
        instance.opt_instance("Text").expect_err("no instance"),
        instance
            .reference("Text")
            .map(|_| ())
            .err()
            .unwrap_or_else(|| instance.text("Text2").expect_err("absent")),
    ] {
        assert_eq!(error.kind(), ErrorKind::Type);
        assert!(error.to_string().starts_with("Msvm_X."), "{error}");
    }
    let wire = CimInstance::new("X")
        .with("U", " 7 ")
        .with("I", "-1")
        .with("B", "TRUE")
        .with("R", "1.5")
        .with("One", "only");
    assert_eq!(wire.u16("U").expect("u"), 7);
    assert_eq!(wire.i64("I").expect("i"), -1);
    assert!(wire.u64("I").is_err());
    assert!(wire.bool("B").expect("b"));
    assert_eq!(wire.opt_real("R").expect("r"), Some(1.5));
    assert_eq!(wire.texts("One").expect("an array of one"), ["only"]);
    let gap =
        CimInstance::new("X").with("Many", CimValue::Array(vec![1_u8.into(), CimValue::Null]));
    assert!(gap.u64s("Many").is_err(), "a number is not left out");
    assert_eq!(wire.texts("None").expect("no array"), Vec::<String>::new());
}

fn storage() -> ClassSchema {
    ClassSchema::new("CIM_ResourceAllocationSettingData")
        .key("InstanceID", CimType::String)
        .property("ResourceType", CimType::Uint16)
        .property("Interval", CimType::Datetime)
        .array("HostResource", CimType::String)
}

#[test]
fn embedded_instances_are_written_as_windows_wants_them() {
    let instance = CimInstance::new("CIM_ResourceAllocationSettingData")
        .with("InstanceID", "Microsoft:A\\B & <C>")
        .with("ResourceType", 31_u16)
        .with("Interval", CimInterval::from_seconds(1800))
        .with("HostResource", vec!["D:\\vm\\a.vhdx"]);
    let text = write(&instance, &storage(), Extent::Given).expect("text");
    assert_eq!(
        text,
        "<INSTANCE CLASSNAME=\"CIM_ResourceAllocationSettingData\">\
         <PROPERTY.ARRAY NAME=\"HostResource\" TYPE=\"string\"><VALUE.ARRAY><VALUE>D:\\vm\\a.vhdx</VALUE>\
         </VALUE.ARRAY></PROPERTY.ARRAY>\
         <PROPERTY NAME=\"InstanceID\" TYPE=\"string\"><VALUE>Microsoft:A\\B &amp; &lt;C&gt;</VALUE></PROPERTY>\
         <PROPERTY NAME=\"Interval\" TYPE=\"datetime\"><VALUE>00000000003000.000000:000</VALUE></PROPERTY>\
         <PROPERTY NAME=\"ResourceType\" TYPE=\"uint16\"><VALUE>31</VALUE></PROPERTY></INSTANCE>"
    );
    let strict = read_strict(&text, &schemas(), None).expect("taken back");
    assert_eq!(strict.properties, instance.properties);
    for bad in [
        CimInstance::new("CIM_ResourceAllocationSettingData").with("ResourceType", 70_000_u64),
        CimInstance::new("CIM_ResourceAllocationSettingData").with("Unheard", 1_u8),
        CimInstance::new("CIM_ResourceAllocationSettingData").with("HostResource", "one"),
        CimInstance::new("CIM_ResourceAllocationSettingData").with("InstanceID", "\u{b}"),
        CimInstance::new("Other"),
    ] {
        assert_eq!(
            write(&bad, &storage(), Extent::Given)
                .expect_err("refused")
                .kind(),
            ErrorKind::Invalid
        );
    }
    let all = write(
        &CimInstance::new("CIM_ResourceAllocationSettingData"),
        &storage(),
        Extent::All,
    )
    .expect("nulls");
    assert!(
        all.contains("<PROPERTY NAME=\"ResourceType\" TYPE=\"uint16\"></PROPERTY>"),
        "{all}"
    );
}

#[test]
fn a_strict_reader_tells_which_rule_was_broken() {
    let schemas = schemas();
    let inside = |properties: &str| {
        format!("<INSTANCE CLASSNAME=\"CIM_ResourceAllocationSettingData\">{properties}</INSTANCE>")
    };
    let problem =
        |text: &str| read_strict(text, &schemas, None).map_err(|it| (it.problem, it.property));
    let of = |problem, property: &str| Err((problem, Some(property.to_owned())));
    assert!(problem(&inside("<QUALIFIER NAME=\"q\" TYPE=\"string\"/>")).is_ok());
    assert_eq!(
        problem(&inside(
            "<PROPERTY NAME=\"HostResource\" TYPE=\"string\"><VALUE>x</VALUE></PROPERTY>"
        )),
        of(EmbeddedProblem::ArrayExpected, "HostResource")
    );
    assert_eq!(
        problem(&inside(
            "<PROPERTY.ARRAY NAME=\"ResourceType\" TYPE=\"uint16\"/>"
        )),
        of(EmbeddedProblem::ScalarExpected, "ResourceType")
    );
    assert_eq!(
        problem(&inside(
            "<PROPERTY NAME=\"ResourceType\" TYPE=\"uint32\"><VALUE>1</VALUE></PROPERTY>"
        )),
        of(EmbeddedProblem::WrongType, "ResourceType")
    );
    assert_eq!(
        problem(&inside(
            "<PROPERTY NAME=\"ResourceType\" TYPE=\"uint16\"><VALUE>x</VALUE></PROPERTY>"
        )),
        of(EmbeddedProblem::BadValue, "ResourceType")
    );
    assert_eq!(
        problem(&inside(
            "<PROPERTY NAME=\"Interval\" TYPE=\"datetime\"><VALUE>P0DT0H30M0S</VALUE></PROPERTY>"
        )),
        of(EmbeddedProblem::BadValue, "Interval"),
        "the other spelling"
    );
    assert_eq!(
        problem(&inside("<PROPERTY NAME=\"Unheard\" TYPE=\"string\"/>")),
        of(EmbeddedProblem::UnknownProperty, "Unheard")
    );
    for (text, wanted) in [
        (
            "<INSTANCE CLASSNAME=\"Nothing\"/>",
            EmbeddedProblem::UnknownClass,
        ),
        (
            "<p:X xmlns:p=\"urn:x\"><p:A>1</p:A></p:X>",
            EmbeddedProblem::NotCimXml,
        ),
        ("", EmbeddedProblem::NotCimXml),
        ("<INSTANCE>", EmbeddedProblem::NotCimXml),
        (
            "<!DOCTYPE x><INSTANCE CLASSNAME=\"X\"/>",
            EmbeddedProblem::NotCimXml,
        ),
    ] {
        assert_eq!(problem(text).map_err(|it| it.0), Err(wanted), "{text}");
    }
    let expected = ClassName::new("Msvm_ConcreteJob");
    let other = read_strict(&inside(""), &schemas, Some(&expected)).expect_err("another class");
    assert_eq!(other.problem, EmbeddedProblem::WrongClass);
    let base = ClassName::new("CIM_ManagedElement");
    let job = "<INSTANCE CLASSNAME=\"Msvm_ConcreteJob\"/>";
    assert!(
        read_strict(job, &schemas, Some(&base)).is_ok(),
        "a subclass belongs there"
    );
}

#[test]
fn a_lenient_reader_takes_what_windows_writes() {
    let text = "\u{20}<INSTANCE CLASSNAME=\"X\" NAMESPACE=\"a\"><QUALIFIER NAME=\"dynamic\" TYPE=\"boolean\">\
        <VALUE>TRUE</VALUE></QUALIFIER><PROPERTY NAME=\"A\" CLASSORIGIN=\"Y\" PROPAGATED=\"true\" TYPE=\"uint64\">\
        <QUALIFIER NAME=\"read\" TYPE=\"boolean\"/><VALUE>5</VALUE></PROPERTY>\
        <PROPERTY.ARRAY NAME=\"B\" TYPE=\"string\"><VALUE.ARRAY><VALUE>x</VALUE><VALUE.NULL/></VALUE.ARRAY>\
        </PROPERTY.ARRAY><PROPERTY NAME=\"C\" TYPE=\"datetime\"><VALUE>16010101000000.000000-000</VALUE></PROPERTY>\
        <PROPERTY.OBJECT NAME=\"D\" TYPE=\"object\"><VALUE.OBJECT><INSTANCE CLASSNAME=\"Z\"/></VALUE.OBJECT>\
        </PROPERTY.OBJECT></INSTANCE>\n";
    let instance = read(text).expect("an instance");
    assert_eq!(instance.get("A"), Some(&CimValue::Uint(5)));
    assert_eq!(
        instance.texts("B").expect("texts"),
        ["x", ""],
        "its length is kept"
    );
    assert_eq!(instance.opt_datetime("C").expect("a time"), None);
    assert_eq!(
        instance
            .opt_instance("D")
            .expect("an object")
            .map(|it| it.class),
        Some("Z".into())
    );
    let wrong = "<INSTANCE CLASSNAME=\"X\"><PROPERTY NAME=\"A\" TYPE=\"uint8\"><VALUE>300</VALUE></PROPERTY></INSTANCE>";
    assert_eq!(
        read(wrong).expect_err("too large").kind(),
        ErrorKind::Malformed
    );
    let long = format!(
        "<INSTANCE CLASSNAME=\"X\">{}</INSTANCE>",
        " ".repeat(2 << 20)
    );
    assert_eq!(read(&long).expect_err("too long").kind(), ErrorKind::Limit);
}

#[test]
fn classes_inherit_and_cannot_inherit_from_themselves() {
    let schemas = schemas();
    let class = schemas
        .class(&"msvm_computersystem".into())
        .expect("a class without case");
    assert_eq!(class.keys, ["CreationClassName", "Name"]);
    assert!(
        class.properties.contains_key("ElementName"),
        "from two levels up"
    );
    let family: Vec<&str> = schemas
        .family(&"CIM_ComputerSystem".into())
        .iter()
        .map(ClassName::as_str)
        .collect();
    assert_eq!(
        family,
        [
            "CIM_ComputerSystem",
            "Msvm_ComputerSystem",
            "Msvm_PlannedComputerSystem"
        ]
    );
    assert!(schemas.is_a(&"Msvm_ConcreteJob".into(), &"CIM_ManagedElement".into()));
    assert!(!schemas.is_a(&"CIM_ManagedElement".into(), &"Msvm_ConcreteJob".into()));
    for bad in [
        vec![ClassSchema::new("A").extends("B")],
        vec![ClassSchema::new("A"), ClassSchema::new("a")],
        vec![ClassSchema::new("A").extends("A")],
        vec![
            ClassSchema::new("A").extends("B"),
            ClassSchema::new("B").extends("A"),
        ],
        vec![
            ClassSchema::new("X").extends("A"),
            ClassSchema::new("A").extends("B"),
            ClassSchema::new("B").extends("A"),
        ],
    ] {
        assert_eq!(
            SchemaSet::new("root", bad).expect_err("refused").kind(),
            ErrorKind::Invalid
        );
    }
}

fn text() -> impl Strategy<Value = String> {
    // Everything that XML can hold, what it must escape above all.
    "([ -~]|[\\t\\n\\r&<>\"']|[\u{a0}-\u{d7ff}]|[\u{1f300}-\u{1f5ff}]){0,24}"
}

fn time() -> impl Strategy<Value = CimDatetime> {
    (-62_135_596_800_000_000_i64..253_402_300_800_000_000)
        .prop_map(|it| CimDatetime::from_unix_micros(it).expect("within the years"))
}

fn span() -> impl Strategy<Value = CimInterval> {
    (0..8_640_000_000_000_000_000_u64)
        .prop_map(|it| CimInterval::from_micros(it).expect("within the days"))
}

fn path() -> impl Strategy<Value = CimPath> {
    prop::collection::btree_map("[A-Z][a-z]{0,6}", text(), 0..4).prop_map(|keys| {
        let mut path = CimPath::new(v2(), "Msvm_X");
        path.keys = keys
            .into_iter()
            .map(|(name, value)| (name, CimValue::Text(value)))
            .collect();
        path
    })
}

/// Values that come back from the wire as they were: texts, times, references, objects, and arrays of two or more.
fn value() -> impl Strategy<Value = CimValue> {
    let scalar = prop_oneof![
        text().prop_map(CimValue::Text),
        time().prop_map(CimValue::Datetime),
        span().prop_map(CimValue::Interval),
        path().prop_map(CimValue::from),
        Just(CimValue::Null),
    ];
    let inner = prop_oneof![
        4 => scalar.clone(),
        1 => prop::collection::vec(scalar.clone(), 2..5).prop_map(CimValue::Array),
    ];
    inner.prop_recursive(2, 8, 4, |inner| {
        prop::collection::btree_map("[A-Z][a-z]{0,6}", inner, 1..4).prop_map(|properties| {
            let mut instance = CimInstance::new("Msvm_Inner").in_namespace(v2());
            instance.properties = properties;
            CimValue::from(instance)
        })
    })
}

fn back_from_the_wire(instance: &CimInstance) -> CimInstance {
    let mut out = XmlWriter::new();
    out.raw("<r xmlns:a='http://schemas.xmlsoap.org/ws/2004/08/addressing' xmlns:w='http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd'>");
    let uri = ResourceUri::class(&v2(), &instance.class).to_string();
    write_instance(&mut out, instance, &uri, None).expect("written");
    out.raw("</r>");
    let text = out.finish().expect("text");
    let document = Document::parse(&text, &XmlLimits::default())
        .unwrap_or_else(|error| panic!("{error} in {text}"));
    let element = document.root().children().next().expect("an instance");
    read_instance(element, &v2(), ReferenceForm::Direct)
        .unwrap_or_else(|error| panic!("{error} in {text}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn instances_come_back_from_the_wire(properties in prop::collection::btree_map("[A-Z][a-zA-Z]{0,8}", value(), 0..6)) {
        let mut instance = CimInstance::new("Msvm_Outer").in_namespace(v2());
        instance.properties = properties;
        prop_assert_eq!(back_from_the_wire(&instance), instance);
    }

    #[test]
    fn numbers_come_back_through_their_getters(unsigned: u64, signed: i64, truth: bool, real in -1e300..1e300_f64) {
        let instance = CimInstance::new("X").with("U", unsigned).with("I", signed).with("B", truth).with("R", real);
        let back = back_from_the_wire(&instance);
        prop_assert_eq!(back.u64("U").expect("u"), unsigned);
        prop_assert_eq!(back.i64("I").expect("i"), signed);
        prop_assert_eq!(back.bool("B").expect("b"), truth);
        prop_assert_eq!(back.opt_real("R").expect("r"), Some(real));
    }

    #[test]
    fn times_come_back_from_both_spellings(time in time(), span in span()) {
        prop_assert_eq!(CimDatetime::parse(&time.to_iso()), Some(time));
        prop_assert_eq!(CimDatetime::parse(&time.to_dmtf()), Some(time));
        prop_assert_eq!(CimInterval::parse(&span.to_iso()), Some(span));
        prop_assert_eq!(CimInterval::parse(&span.to_dmtf()), Some(span));
    }

    #[test]
    fn paths_come_back_from_text(path in path(), host in prop::option::of("[A-Z]{1,8}(\\.[a-z]{1,5})?")) {
        let text = path.to_text(host.as_deref());
        let (named, back) = CimPath::parse_with_host(&text, &Namespace::unspecified()).expect("a path");
        prop_assert_eq!(&back, &path);
        prop_assert_eq!(named, host);
        prop_assert!(back.is_same(&path));
    }

    #[test]
    fn embedded_instances_come_back(
        id in text(),
        kind in prop::option::of(any::<u16>()),
        span in prop::option::of(span()),
        files in prop::collection::vec(text(), 0..4),
    ) {
        let instance = CimInstance::new("CIM_ResourceAllocationSettingData")
            .with("InstanceID", id)
            .with("ResourceType", kind)
            .with("Interval", span)
            .with("HostResource", files);
        let text = write(&instance, &storage(), Extent::Given).expect("text");
        prop_assert_eq!(&read(&text).expect("lenient").properties, &instance.properties);
        prop_assert_eq!(&read_strict(&text, &schemas(), None).expect("strict").properties, &instance.properties);
        // Inside of a message it is a text like any other.
        let outer = CimInstance::new("X").in_namespace(v2()).with("Settings", text);
        prop_assert_eq!(back_from_the_wire(&outer), outer);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        let _ = CimPath::parse(&text, &v2()).map(|path| path.to_text(None));
        let _ = CimDatetime::parse(&text);
        let _ = CimInterval::parse(&text);
        let _ = read(&text);
        let _ = ResourceUri::parse(&text);
    }
}
