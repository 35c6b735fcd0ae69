//! The answering half: what it gives, and what it refuses as Windows does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use wsman::cim::CimValue;
use wsman::message::{Fault, FaultCode, hresult, read_answer, read_batch};
use wsman::server::{
    AccountName, Caller, ContextIds, ParameterOrder, Reply, ServiceOptions, SoapService,
    WsmanService,
};
use wsman::xml::{Charset, Document, XmlLimits, decode, encode};

use crate::shelf::{Shelf, Stand, caller, host, job, v2, vm};

pub const WMI: &str = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2";
pub const ENUMERATION: &str = "http://schemas.xmlsoap.org/ws/2004/09/enumeration";
pub const GET: &str = "http://schemas.xmlsoap.org/ws/2004/09/transfer/Get";
const SERVICE: &str = "Msvm_VirtualSystemSnapshotService";

pub fn envelope(uri: &str, action: &str, extra: &str, body: &str) -> String {
    format!(
        "<s:Envelope xmlns:s='http://www.w3.org/2003/05/soap-envelope' \
         xmlns:a='http://schemas.xmlsoap.org/ws/2004/08/addressing' xmlns:n='{ENUMERATION}' \
         xmlns:w='http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd'><s:Header><a:To>http://h/wsman</a:To>\
         <w:ResourceURI>{uri}</w:ResourceURI><a:ReplyTo><a:Address>\
         http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address></a:ReplyTo>\
         <a:Action>{action}</a:Action><a:MessageID>uuid:1</a:MessageID>{extra}</s:Header>\
         <s:Body>{body}</s:Body></s:Envelope>"
    )
}

pub fn selectors(pairs: &[(&str, &str)]) -> String {
    let inner: String = pairs
        .iter()
        .map(|(name, value)| format!("<w:Selector Name='{name}'>{value}</w:Selector>"))
        .collect();
    format!("<w:SelectorSet>{inner}</w:SelectorSet>")
}

fn wql(query: &str) -> String {
    wql_with(
        query,
        "<w:OptimizeEnumeration/><w:MaxElements>1000</w:MaxElements>",
    )
}

fn wql_with(query: &str, options: &str) -> String {
    let escaped = query.replace('&', "&amp;").replace('<', "&lt;");
    envelope(
        &format!("{WMI}/*"),
        &format!("{ENUMERATION}/Enumerate"),
        "",
        &format!(
            "<n:Enumerate>{options}<w:Filter Dialect='http://schemas.microsoft.com/wbem/wsman/1/WQL'>{escaped}\
             </w:Filter></n:Enumerate>"
        ),
    )
}

fn pull(context: &str, options: &str) -> String {
    envelope(
        &format!("{WMI}/*"),
        &format!("{ENUMERATION}/Pull"),
        "",
        &format!(
            "<n:Pull><n:EnumerationContext>{context}</n:EnumerationContext>{options}</n:Pull>"
        ),
    )
}

fn get(class: &str, keys: &[(&str, &str)]) -> String {
    envelope(&format!("{WMI}/{class}"), GET, &selectors(keys), "")
}

fn call(method: &str, inner: &str) -> String {
    envelope(
        &format!("{WMI}/{SERVICE}"),
        &format!("{WMI}/{SERVICE}/{method}"),
        &selectors(&[("CreationClassName", SERVICE)]),
        &format!("<p:{method}_INPUT xmlns:p='{WMI}/{SERVICE}'>{inner}</p:{method}_INPUT>"),
    )
}

fn stand(options: ServiceOptions) -> Stand {
    let mut instances = vec![host(), job()];
    instances.extend((0..10).map(vm));
    Stand::new(Shelf::new(instances), options)
}

pub fn ask(service: &WsmanService, request: &str) -> (u16, String) {
    let Reply { status, body, .. } = service.serve(&caller(), None, request.as_bytes());
    (status, String::from_utf8(body).expect("utf-8"))
}

pub fn fault(service: &WsmanService, request: &str) -> Fault {
    let (status, text) = ask(service, request);
    let document = Document::parse(&text, &XmlLimits::default()).expect("xml");
    let error = read_answer(&document, None).expect_err("a fault");
    assert!(status >= 400, "{status} {text}");
    let fault = error.fault().expect("a fault").clone();
    assert_eq!(fault.machine.as_deref(), Some("HV01"));
    fault
}

fn names(service: &WsmanService, request: &str) -> Vec<String> {
    let (status, text) = ask(service, request);
    assert_eq!(status, 200, "{text}");
    let document = Document::parse(&text, &XmlLimits::default()).expect("xml");
    let body = read_answer(&document, None).expect("an answer");
    let batch = read_batch(body, &v2(), None).expect("a batch");
    assert!(batch.is_last);
    batch
        .items
        .iter()
        .map(|item| match item {
            wsman::message::Item::Object(it) | wsman::message::Item::Fragment(it) => {
                it.text("Name").expect("a name")
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn queries_choose_among_instances() {
    let service = stand(ServiceOptions::default()).service;
    let all = names(&service, &wql("SELECT * FROM CIM_ComputerSystem"));
    assert_eq!(all.len(), 11, "instances of subclasses belong to it");
    let guests = names(
        &service,
        &wql("select * from msvm_computersystem where Name != __SERVER"),
    );
    assert_eq!(guests.len(), 10);
    let one = names(
        &service,
        &wql(
            "SELECT Name FROM Msvm_ComputerSystem WHERE name = '00000003-93a5-4b1e-8d4c-0123456789ab'",
        ),
    );
    assert_eq!(one, ["00000003-93A5-4B1E-8D4C-0123456789AB"]);
}

#[test]
fn every_scalar_is_there_in_order_and_null_arrays_are_not() {
    let service = stand(ServiceOptions::default()).service;
    let (_, text) = ask(
        &service,
        &get(
            "Msvm_ComputerSystem",
            &[
                ("CreationClassName", "Msvm_ComputerSystem"),
                ("Name", "hv01"),
            ],
        ),
    );
    let at = |needle: &str| {
        text.find(needle)
            .unwrap_or_else(|| panic!("{needle} in {text}"))
    };
    let order = [
        "<p:Caption xsi:nil=\"true\"/>",
        "<p:CreationClassName>",
        "<p:ElementName xsi:nil=\"true\"/>",
        "<p:EnabledState>2</p:EnabledState>",
        "<p:InstallDate xsi:nil=\"true\"/>",
        "<p:Name>HV01</p:Name>",
        "<p:OnTimeInMilliseconds xsi:nil=\"true\"/>",
    ];
    assert!(order.windows(2).all(|it| at(it[0]) < at(it[1])), "{text}");
    assert!(!text.contains("OperationalStatus"));
    assert!(text.contains("xsi:type=\"p:Msvm_ComputerSystem_Type\""));
    assert!(text.contains("<a:RelatesTo>uuid:1</a:RelatesTo>"));
}

#[test]
fn a_pull_without_a_count_brings_one() {
    let service = stand(ServiceOptions::default()).service;
    let (_, text) = ask(&service, &wql_with("SELECT * FROM Msvm_ComputerSystem", ""));
    assert!(
        !text.contains("Items"),
        "only the context without OptimizeEnumeration"
    );
    let document = Document::parse(&text, &XmlLimits::default()).expect("xml");
    let batch =
        read_batch(read_answer(&document, None).expect("body"), &v2(), None).expect("batch");
    let context = batch.context.expect("a context");
    let (_, text) = ask(&service, &pull(context.as_str(), ""));
    assert_eq!(text.matches("<p:Msvm_ComputerSystem ").count(), 1);
    let (_, text) = ask(
        &service,
        &pull(context.as_str(), "<n:MaxElements>7</n:MaxElements>"),
    );
    assert_eq!(text.matches("<p:Msvm_ComputerSystem ").count(), 7);
    assert!(text.contains("<n:Items>") && !text.contains("EndOfSequence"));
    let (_, text) = ask(
        &service,
        &pull(context.as_str(), "<n:MaxElements>7</n:MaxElements>"),
    );
    assert!(text.contains("<n:EndOfSequence/>"));
    let ended = fault(&service, &pull(context.as_str(), ""));
    assert_eq!(ended.code, FaultCode::InvalidEnumerationContext);
}

#[test]
fn contexts_lapse_and_belong_to_their_caller() {
    let stand = stand(ServiceOptions {
        context_ids: ContextIds::Renewed,
        ..ServiceOptions::default()
    });
    let (_, text) = ask(
        &stand.service,
        &wql_with("SELECT * FROM Msvm_ComputerSystem", ""),
    );
    let document = Document::parse(&text, &XmlLimits::default()).expect("xml");
    let batch =
        read_batch(read_answer(&document, None).expect("body"), &v2(), None).expect("batch");
    let context = batch.context.expect("a context");
    let other = Caller::Account(AccountName::new("EXAMPLE\\mallory"));
    let stolen = stand
        .service
        .serve(&other, None, pull(context.as_str(), "").as_bytes());
    assert_eq!(stolen.status, 500);
    let (_, text) = ask(&stand.service, &pull(context.as_str(), ""));
    assert!(!text.contains(context.as_str()), "a new context each time");
    assert_eq!(
        fault(&stand.service, &pull(context.as_str(), "")).code,
        FaultCode::InvalidEnumerationContext
    );
    let document = Document::parse(&text, &XmlLimits::default()).expect("xml");
    let batch =
        read_batch(read_answer(&document, None).expect("body"), &v2(), None).expect("batch");
    let context = batch.context.expect("a context");
    stand.clock_ms.store(60_001, Ordering::Relaxed);
    assert_eq!(
        fault(&stand.service, &pull(context.as_str(), "")).code,
        FaultCode::InvalidEnumerationContext
    );
}

#[test]
fn one_caller_cannot_hold_any_number_of_enumerations() {
    let service = stand(ServiceOptions {
        contexts_per_caller: 3,
        ..ServiceOptions::default()
    })
    .service;
    let request = wql_with("SELECT * FROM Msvm_ComputerSystem", "");
    for _ in 0..3 {
        assert_eq!(ask(&service, &request).0, 200);
    }
    let refused = fault(&service, &request);
    assert_eq!(refused.wsman_code, Some(2_150_859_174));
    assert_eq!(
        refused.code,
        FaultCode::InternalError,
        "as real hosts say it"
    );
}

#[test]
fn keys_must_be_all_and_only_the_keys() {
    let service = stand(ServiceOptions::default()).service;
    let class = ("CreationClassName", "Msvm_ComputerSystem");
    let name = ("Name", "HV01");
    assert_eq!(
        ask(&service, &get("MSVM_COMPUTERSYSTEM", &[class, name])).0,
        200,
        "URIs have no case"
    );
    let few = fault(&service, &get("Msvm_ComputerSystem", &[name]));
    assert_eq!(few.code, FaultCode::DestinationUnreachable);
    let wrong = fault(
        &service,
        &get("Msvm_ComputerSystem", &[class, name, ("ElementName", "x")]),
    );
    assert_eq!(
        (wrong.code, wrong.wsman_code),
        (FaultCode::InvalidSelectors, Some(2_150_858_843))
    );
    let missing = fault(
        &service,
        &get("Msvm_ComputerSystem", &[class, ("Name", "nobody")]),
    );
    assert_eq!(
        missing.provider.expect("an error").hresult,
        Some(hresult::NOT_FOUND)
    );
    let no_class = fault(&service, &get("Msvm_Nothing", &[]));
    assert_eq!(no_class.code, FaultCode::DestinationUnreachable);
    let two_names = [class, name, ("__cimnamespace", "root/cimv2")];
    assert_eq!(
        fault(&service, &get("Msvm_ComputerSystem", &two_names)).code,
        FaultCode::InvalidSelectors
    );
    let same = [class, name, ("__cimnamespace", "root/virtualization/v2")];
    assert_eq!(ask(&service, &get("Msvm_ComputerSystem", &same)).0, 200);
}

#[test]
fn queries_that_make_no_sense_are_refused_as_filters() {
    let service = stand(ServiceOptions::default()).service;
    for query in [
        "SELECT * FROM Msvm_Nothing",
        "SELECT Nothing FROM Msvm_ComputerSystem",
        "SELECT * FROM Msvm_ComputerSystem WHERE Nothing = 1",
        "SELECT * FROM Msvm_ComputerSystem WHERE",
        "ASSOCIATORS OF {Msvm_ComputerSystem.Name='x'}",
        "ASSOCIATORS OF {Msvm_ConcreteJob.InstanceID='9D4B'} WHERE AssocClass = Msvm_Nothing",
        "DELETE",
    ] {
        let refused = fault(&service, &wql(query));
        assert_eq!(refused.code, FaultCode::CannotProcessFilter, "{query}");
        assert_eq!(refused.wsman_code, Some(2_150_858_778), "{query}");
        assert_eq!(refused.provider, None, "it does not say why");
    }
    let elsewhere = wql("SELECT * FROM X").replace("root/virtualization/v2", "root/nowhere");
    assert_eq!(
        fault(&service, &elsewhere).code,
        FaultCode::CannotProcessFilter
    );
    let concrete =
        wql("SELECT * FROM Msvm_ComputerSystem").replace("v2/*", "v2/Msvm_ComputerSystem");
    assert_eq!(fault(&service, &concrete).wsman_code, Some(2_150_859_003));
    let dialect = wql("SELECT 1").replace("/1/WQL", "/1/CQL");
    assert_eq!(
        fault(&service, &dialect).code,
        FaultCode::FilterDialectRequestedUnavailable
    );
}

#[test]
fn headers_are_held_to_the_rules() {
    let service = stand(ServiceOptions::default()).service;
    let keys = selectors(&[("InstanceID", "9D4B")]);
    let uri = format!("{WMI}/Msvm_ConcreteJob");
    let with = |extra: &str| envelope(&uri, GET, &format!("{keys}{extra}"), "");
    assert_eq!(ask(&service, &with("")).0, 200);
    let unknown = with("<x:Strange xmlns:x='urn:x' s:mustUnderstand='true'/>");
    assert_eq!(fault(&service, &unknown).code, FaultCode::MustUnderstand);
    assert_eq!(ask(&service, &with("<x:Strange xmlns:x='urn:x'/>")).0, 200);
    let small = with("<w:MaxEnvelopeSize>8191</w:MaxEnvelopeSize>");
    assert_eq!(
        (
            fault(&service, &small).code,
            fault(&service, &small).wsman_code
        ),
        (FaultCode::EncodingLimit, Some(2_150_858_878))
    );
    assert_eq!(
        ask(
            &service,
            &with("<w:MaxEnvelopeSize>8192</w:MaxEnvelopeSize>")
        )
        .0,
        200
    );
    assert_eq!(
        fault(
            &service,
            &with("<w:OperationTimeout>soon</w:OperationTimeout>")
        )
        .code,
        FaultCode::SchemaValidationError
    );
    let no_id = with("").replace("<a:MessageID>uuid:1</a:MessageID>", "");
    assert_eq!(
        fault(&service, &no_id).code,
        FaultCode::MessageInformationHeaderRequired
    );
    let spaced = with("").replace(&format!(">{uri}<"), &format!(">\n  {uri}\t<"));
    assert_eq!(
        ask(&service, &spaced).0,
        200,
        "white space around the URI does not count"
    );
    assert_eq!(
        fault(&service, &with("").replace(GET, "urn:dance")).code,
        FaultCode::ActionNotSupported
    );
    let soap11 = with("").replace(
        "http://www.w3.org/2003/05/soap-envelope",
        "http://schemas.xmlsoap.org/soap/envelope/",
    );
    assert_eq!(fault(&service, &soap11).code, FaultCode::VersionMismatch);
}

const SYSTEM: &str = "<p:AffectedSystem><a:Address>x</a:Address><a:ReferenceParameters><w:ResourceURI>\
    http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/Msvm_ComputerSystem</w:ResourceURI>\
    <w:SelectorSet><w:Selector Name='Name'>A</w:Selector></w:SelectorSet></a:ReferenceParameters></p:AffectedSystem>";

#[test]
fn parameters_are_typed_by_their_schema() {
    let shelf = Shelf::new(vec![host()]);
    let seen = shelf.seen.clone();
    let stand = Stand::new(shelf, ServiceOptions::default());
    let inner = format!("{SYSTEM}<p:SnapshotSettings/><p:SnapshotType> 32768 </p:SnapshotType>");
    let (status, text) = ask(&stand.service, &call("CreateSnapshot", &inner));
    assert_eq!(status, 200, "{text}");
    assert!(
        text.contains("<p:ResultingSnapshot xsi:nil=\"true\"/>"),
        "{text}"
    );
    assert!(
        text.contains("<p:ReturnValue>4096</p:ReturnValue>"),
        "{text}"
    );
    // The namespace of the outer element does not count: a client in use sends another.
    let virt_who = call("CreateSnapshot", &inner)
        .replace(
            "<p:CreateSnapshot_INPUT",
            "<q:CreateSnapshot_INPUT xmlns:q='urn:other'",
        )
        .replace("</p:CreateSnapshot_INPUT>", "</q:CreateSnapshot_INPUT>");
    assert_eq!(ask(&stand.service, &virt_who).0, 200);
    let array = "<p:ResourceSettings>&lt;INSTANCE/&gt;</p:ResourceSettings>";
    assert_eq!(
        ask(&stand.service, &call("AddResourceSettings", array)).0,
        200
    );
    let seen = seen.lock().expect("seen");
    assert_eq!(seen[0].1.get("SnapshotType"), Some(&CimValue::Uint(32768)));
    assert_eq!(seen[0].1.get("SnapshotSettings"), Some(&CimValue::from("")));
    assert!(matches!(
        seen[0].1.get("AffectedSystem"),
        Some(CimValue::Reference(_))
    ));
    assert_eq!(
        seen[2].1.get("ResourceSettings"),
        Some(&CimValue::from(vec!["<INSTANCE/>"])),
        "one is an array where an array is declared"
    );
}

#[test]
fn parameters_in_wrong_forms_are_refused() {
    let service = stand(ServiceOptions::default()).service;
    let refused = |inner: &str| fault(&service, &call("CreateSnapshot", inner));
    let kind = "<p:SnapshotType>2</p:SnapshotType>";
    let wrapped = SYSTEM
        .replace("<a:Address>", "<a:EndpointReference><a:Address>")
        .replace(
            "</p:AffectedSystem>",
            "</a:EndpointReference></p:AffectedSystem>",
        );
    assert_eq!(
        refused(&wrapped).code,
        FaultCode::SchemaValidationError,
        "a wrapped reference"
    );
    let tree = "<p:SnapshotSettings><q:ConsistencyLevel xmlns:q='urn:q'>1</q:ConsistencyLevel></p:SnapshotSettings>";
    assert_eq!(
        refused(tree).code,
        FaultCode::SchemaValidationError,
        "an embedded instance as a tree"
    );
    let unknown = refused("<p:Nothing>1</p:Nothing>");
    assert_eq!(
        (unknown.code, unknown.wsman_code),
        (FaultCode::SchemaValidationError, Some(2_150_858_837))
    );
    let case = refused("<p:snapshottype>2</p:snapshottype>");
    assert_eq!(
        case.code,
        FaultCode::SchemaValidationError,
        "names have case"
    );
    let foreign = refused("<q:SnapshotType xmlns:q='urn:q'>2</q:SnapshotType>");
    assert_eq!(foreign.wsman_code, Some(2_150_858_840));
    let typed = refused("<p:SnapshotType>two</p:SnapshotType>");
    assert_eq!(
        (typed.code, typed.wsman_code),
        (FaultCode::InvalidParameter, Some(2_150_858_836))
    );
    assert_eq!(
        refused("<p:SnapshotType>65536</p:SnapshotType>").code,
        FaultCode::InvalidParameter
    );
    let twice = refused(&format!("{kind}{kind}"));
    assert_eq!(twice.code, FaultCode::SchemaValidationError, "no array");
    let reference = refused("<p:AffectedSystem>vm</p:AffectedSystem>");
    assert_eq!(reference.code, FaultCode::SchemaValidationError);
    let output =
        refused("<p:Job xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance' xsi:nil='true'/>");
    assert_eq!(
        output.code,
        FaultCode::SchemaValidationError,
        "an output is no input"
    );
    let method = fault(&service, &call("Dance", ""));
    assert_eq!(method.code, FaultCode::ActionNotSupported);
    let nobody =
        call("CreateSnapshot", kind).replace(&selectors(&[("CreationClassName", SERVICE)]), "");
    let nobody = fault(&service, &nobody);
    assert_eq!(nobody.code, FaultCode::InternalError);
    assert_eq!(
        nobody.provider.expect("wmi").hresult,
        Some(hresult::INVALID_METHOD_PARAMETERS)
    );
}

#[test]
fn whether_parameters_have_an_order_is_an_option() {
    let inner = format!("<p:SnapshotType>2</p:SnapshotType>{SYSTEM}");
    let strict = stand(ServiceOptions::default()).service;
    assert_eq!(
        fault(&strict, &call("CreateSnapshot", &inner)).code,
        FaultCode::SchemaValidationError
    );
    let any = stand(ServiceOptions {
        parameter_order: ParameterOrder::Any,
        ..ServiceOptions::default()
    })
    .service;
    assert_eq!(ask(&any, &call("CreateSnapshot", &inner)).0, 200);
}

#[test]
fn answers_keep_to_the_envelope_that_the_client_takes() {
    let mut instances: Vec<_> = (0..200).map(vm).collect();
    instances.push(vm(999).with("ElementName", "x".repeat(9000)));
    let stand = Stand::new(Shelf::new(instances), ServiceOptions::default());
    let small = |request: String| {
        request.replace(
            "</s:Header>",
            "<w:MaxEnvelopeSize>8192</w:MaxEnvelopeSize></s:Header>",
        )
    };
    let (_, mut text) = ask(
        &stand.service,
        &small(wql("SELECT * FROM Msvm_ComputerSystem")),
    );
    let mut seen = 0;
    loop {
        assert!(text.len() <= 8192, "{}", text.len());
        seen += text.matches("<p:Msvm_ComputerSystem ").count();
        let document = Document::parse(&text, &XmlLimits::default()).expect("xml");
        let batch = match read_answer(&document, None) {
            Ok(body) => read_batch(body, &v2(), None).expect("a batch"),
            Err(error) => {
                let fault = error.fault().expect("a fault");
                assert_eq!(
                    fault.code,
                    FaultCode::EncodingLimit,
                    "the one that fits nowhere"
                );
                break;
            }
        };
        let context = batch.context.expect("more");
        let request = pull(context.as_str(), "<n:MaxElements>1000</n:MaxElements>");
        text = ask(&stand.service, &small(request)).1;
    }
    assert_eq!(seen, 200);
}

#[test]
fn utf_16_is_answered_in_utf_16() {
    let service = stand(ServiceOptions::default()).service;
    for charset in [Charset::Utf16, Charset::Utf16BigEndian] {
        let request = encode(get("Msvm_ConcreteJob", &[("InstanceID", "9d4b")]), charset);
        let reply = service.serve(&caller(), None, &request);
        assert_eq!(reply.status, 200);
        assert_eq!(reply.content_type, "application/soap+xml;charset=UTF-16");
        let (text, used) = decode(&reply.body, None).expect("text");
        assert_eq!(used, charset);
        assert!(text.contains("<p:InstanceID>9D4B</p:InstanceID>"));
    }
}

#[test]
fn nobody_gets_more_than_identify() {
    let service = stand(ServiceOptions::default()).service;
    let identify = "<s:Envelope xmlns:s='http://www.w3.org/2003/05/soap-envelope'><s:Header/><s:Body>\
        <i:Identify xmlns:i='http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd'/></s:Body></s:Envelope>";
    let anonymous = service.serve(&Caller::Anonymous, None, identify.as_bytes());
    let text = String::from_utf8(anonymous.body).expect("utf-8");
    assert!(text.contains("OS: 0.0.0 SP: 0.0"), "{text}");
    assert!(ask(&service, identify).1.contains("OS: 10.0.17763"));
    let request = get("Msvm_ConcreteJob", &[("InstanceID", "9D4B")]);
    let refused = service.serve(&Caller::Anonymous, None, request.as_bytes());
    let text = String::from_utf8(refused.body).expect("utf-8");
    assert!(text.contains("w:AccessDenied"), "{text}");
}

#[test]
fn a_provider_can_refuse_what_it_likes() {
    let mut shelf = Shelf::new(vec![host(), job()]);
    shelf.refuse = Box::new(|operation| match operation {
        wsman::server::Operation::Enumerate { query: Some(_), .. } => {
            Err(Fault::new(FaultCode::CannotProcessFilter))
        }
        _ => Ok(()),
    });
    let stand = Stand::new(shelf, ServiceOptions::default());
    let refused = fault(&stand.service, &wql("SELECT * FROM Msvm_ComputerSystem"));
    assert_eq!(refused.code, FaultCode::CannotProcessFilter);
    assert_eq!(
        ask(
            &stand.service,
            &get("Msvm_ConcreteJob", &[("InstanceID", "9D4B")])
        )
        .0,
        200
    );
}

#[test]
fn what_a_provider_gives_wrongly_is_never_sent() {
    for broken in [
        job().with("JobState", "seven"),
        job().with("JobState", 70_000_u64),
        job().with("Unheard", 1_u8),
        job().with("JobState", vec![1_u16]),
        job().with("Caption", "\u{1}"),
    ] {
        let stand = Stand::new(Shelf::new(vec![broken.clone()]), ServiceOptions::default());
        let answered = fault(&stand.service, &wql("SELECT * FROM Msvm_ConcreteJob"));
        assert_eq!(answered.code, FaultCode::InternalError, "{broken:?}");
    }
}

#[test]
fn what_is_no_message_gets_a_fault() {
    let service = stand(ServiceOptions::default()).service;
    for (request, wanted) in [
        (String::new(), FaultCode::SchemaValidationError),
        ("<a>".to_owned(), FaultCode::SchemaValidationError),
        ("<a/>".to_owned(), FaultCode::SchemaValidationError),
        ("<a>".repeat(70_000), FaultCode::EncodingLimit),
        (
            "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>".to_owned(),
            FaultCode::SchemaValidationError,
        ),
        (
            format!("<a>{}</a>", " ".repeat(600_000)),
            FaultCode::EncodingLimit,
        ),
    ] {
        assert_eq!(fault(&service, &request).code, wanted, "{:.80}", request);
    }
    let reply = service.serve(&caller(), None, &[0xff, 0xfe, 0x00]);
    assert_eq!(reply.status, 400);
}

#[test]
fn an_operation_that_took_too_long_is_told_so() {
    let mut shelf = Shelf::new(vec![job()]);
    let ticks = Arc::new(std::sync::Mutex::new(
        None::<Arc<std::sync::atomic::AtomicU64>>,
    ));
    let clock = ticks.clone();
    shelf.refuse = Box::new(move |_| {
        if let Some(clock) = clock.lock().expect("clock").as_ref() {
            clock.fetch_add(5_001, Ordering::Relaxed);
        }
        Ok(())
    });
    let stand = Stand::new(shelf, ServiceOptions::default());
    *ticks.lock().expect("clock") = Some(stand.clock_ms.clone());
    let request = get("Msvm_ConcreteJob", &[("InstanceID", "9D4B")]);
    let hasty = request.replace(
        "</s:Header>",
        "<w:OperationTimeout>PT5S</w:OperationTimeout></s:Header>",
    );
    assert_eq!(fault(&stand.service, &hasty).code, FaultCode::TimedOut);
    assert_eq!(ask(&stand.service, &request).0, 200);
}
