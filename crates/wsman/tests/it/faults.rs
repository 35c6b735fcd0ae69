//! Faults: each is read as it was written, and the odd ones for what can be known of them.

use proptest::prelude::*;
use wsman::ErrorKind;
use wsman::message::{Fault, FaultCode, FaultSide, hresult, read_answer, wsman_code};
use wsman::xml::{Document, XmlLimits, XmlWriter};

const SOAP: &str = "http://www.w3.org/2003/05/soap-envelope";

fn envelope(body: &str) -> String {
    format!(
        "<s:Envelope xmlns:s='{SOAP}' xmlns:a='http://schemas.xmlsoap.org/ws/2004/08/addressing' \
         xmlns:n='http://schemas.xmlsoap.org/ws/2004/09/enumeration' \
         xmlns:w='http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd'><s:Body>{body}</s:Body></s:Envelope>"
    )
}

fn read(body: &str) -> Fault {
    let text = envelope(body);
    let document = Document::parse(&text, &XmlLimits::default()).expect("well-formed");
    let error = read_answer(&document, None).expect_err("a fault");
    let fault = error.fault().expect("a fault").clone();
    assert_eq!(error.kind(), fault.kind());
    fault
}

fn back(fault: &Fault) -> Fault {
    let mut out = XmlWriter::new();
    fault.write(&mut out, "ja-JP");
    read(&out.finish().expect("text"))
}

#[test]
fn every_fault_comes_back_as_it_was() {
    for code in FaultCode::ALL {
        let mut plain = Fault::new(*code);
        plain.machine = Some("HV01".to_owned());
        assert!(plain.wsman_code.is_some() && !plain.reason.is_empty());
        let full = plain
            .clone()
            .with_hresult(hresult::NOT_FOUND, "見つかりません <&>")
            .with_detail("InvalidResourceURI")
            .because("It says more.");
        for fault in [plain, full] {
            let mut read = back(&fault);
            if matches!(code, FaultCode::MustUnderstand | FaultCode::VersionMismatch) {
                // Their side is in the code itself.
                read.side = fault.side;
            }
            assert_eq!(read, fault);
        }
    }
}

#[test]
fn what_a_caller_can_do_follows_from_the_codes() {
    let kind = |fault: Fault| back(&fault).kind();
    for (code, wanted) in [
        (FaultCode::AccessDenied, ErrorKind::AccessDenied),
        (FaultCode::InvalidSelectors, ErrorKind::NotFound),
        (FaultCode::DestinationUnreachable, ErrorKind::NotFound),
        (FaultCode::ActionNotSupported, ErrorKind::Unsupported),
        (FaultCode::TimedOut, ErrorKind::TimedOut),
        (FaultCode::QuotaLimit, ErrorKind::Busy),
        (FaultCode::EncodingLimit, ErrorKind::Limit),
        (FaultCode::CannotProcessFilter, ErrorKind::Fault),
        (FaultCode::SchemaValidationError, ErrorKind::Fault),
        (FaultCode::InternalError, ErrorKind::Fault),
    ] {
        assert_eq!(kind(Fault::new(code)), wanted, "{code:?}");
    }
    let internal = || Fault::new(FaultCode::InternalError).on_side(FaultSide::Receiver);
    for (code, wanted) in [
        (hresult::NOT_FOUND, ErrorKind::NotFound),
        (hresult::INVALID_CLASS, ErrorKind::NotFound),
        (hresult::INVALID_NAMESPACE, ErrorKind::NotFound),
        (hresult::ACCESS_DENIED, ErrorKind::AccessDenied),
        (hresult::WIN32_ACCESS_DENIED, ErrorKind::AccessDenied),
        (hresult::FAILED, ErrorKind::Fault),
    ] {
        assert_eq!(kind(internal().with_hresult(code, "")), wanted, "{code:x}");
    }
    let quota = internal().with_wsman_code(wsman_code::CONCURRENT_OPERATIONS_PER_USER);
    assert_eq!(kind(quota), ErrorKind::Busy);
}

#[test]
fn a_fault_that_says_little_is_still_one() {
    let empty = read("<s:Fault/>");
    assert_eq!(
        (empty.code, empty.kind()),
        (FaultCode::Other, ErrorKind::Fault)
    );
    let unknown = read(
        "<s:Fault><s:Code><s:Value>s:Receiver</s:Value><s:Subcode><s:Value>w:Strange</s:Value></s:Subcode></s:Code></s:Fault>",
    );
    assert_eq!(
        (unknown.code, unknown.side),
        (FaultCode::Other, FaultSide::Receiver)
    );
    assert_eq!(unknown.reason, "Strange");
    // Prefixes are resolved where they stand, and the innermost subcode counts.
    let nested = read(
        "<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>w:Strange</s:Value><s:Subcode>\
         <s:Value xmlns:q='http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd'> q:TimedOut </s:Value></s:Subcode>\
         </s:Subcode></s:Code></s:Fault>",
    );
    assert_eq!(nested.code, FaultCode::TimedOut);
    let elsewhere = read(
        "<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value xmlns:w='urn:x'>w:TimedOut</s:Value>\
         </s:Subcode></s:Code></s:Fault>",
    );
    assert_eq!(elsewhere.code, FaultCode::Other, "another namespace's name");
    for (text, wanted) in [
        ("2147749890", Some(0x8004_1002)),
        ("-2147217406", Some(0x8004_1002)),
        ("0x80041002", Some(0x8004_1002)),
        ("many", None),
        ("99999999999", None),
    ] {
        let fault = read(&format!(
            "<s:Fault><s:Detail><x><MSFT_WmiError><error_Code>{text}</error_Code></MSFT_WmiError></x></s:Detail></s:Fault>"
        ));
        assert_eq!(fault.provider.and_then(|it| it.hresult), wanted, "{text}");
    }
    let long = read(&format!(
        "<s:Fault><s:Reason><s:Text>{}</s:Text></s:Reason></s:Fault>",
        "x".repeat(100_000)
    ));
    assert_eq!(long.reason.len(), 2000, "no more is kept");
}

proptest! {
    #[test]
    fn any_reason_comes_back(reason in "[ -~ä-ü]{1,60}", message in "[!-~]{0,30}", code: u32, hresult: u32) {
        let mut fault = Fault::new(FaultCode::InternalError)
            .with_wsman_code(code)
            .with_hresult(hresult, message);
        fault.reason = reason.trim().to_owned();
        fault.machine = Some("H".to_owned());
        prop_assume!(!fault.reason.is_empty());
        prop_assert_eq!(back(&fault), fault);
    }
}
