//! WQL: what is read, what is refused, and that evaluation agrees with a naive one.

use proptest::prelude::*;
use wsman::ErrorKind;
use wsman::cim::{CimDatetime, CimInstance, CimValue, ClassName};
use wsman::wql::{Condition, LikePattern, Query, RelatedExtent, Scope, Select, quote};

fn select(text: &str) -> Select {
    match Query::parse(text) {
        Ok(Query::Select(select)) => select,
        other => panic!("{text}: {other:?}"),
    }
}

fn matches(instance: &CimInstance, condition: &str) -> bool {
    let is_a =
        |class: &ClassName, ancestor: &ClassName| class == ancestor || *ancestor == "CIM_Base";
    let scope = Scope {
        server: "HV01",
        is_a: &is_a,
    };
    select(&format!("SELECT * FROM CIM_Base WHERE {condition}")).matches(instance, &scope)
}

fn subject() -> CimInstance {
    let inner = CimInstance::new("Private")
        .with("VmID", "abc-DEF")
        .with("Depth", 3_u8);
    CimInstance::new("Msvm_X")
        .with("Name", "hv01")
        .with("Quoted", "it's a \\ \"path\"")
        .with("Number", 7_u32)
        .with("Minus", -7_i32)
        .with("Big", u64::MAX)
        .with("WireNumber", "42")
        .with("Flag", true)
        .with("WireFlag", "False")
        .with("When", CimDatetime::parse("2026-03-02T09:11:27Z"))
        .with("Nothing", CimValue::Null)
        .with("Many", vec![1_u8])
        .with("PrivateProperties", inner)
        .with("Embedded", "<INSTANCE CLASSNAME=\"Y\"><PROPERTY NAME=\"A\" TYPE=\"uint8\"><VALUE>9</VALUE></PROPERTY></INSTANCE>")
}

#[test]
fn conditions_hold_as_in_wmi() {
    let subject = subject();
    for condition in [
        "Name = 'HV01'",
        "name=\"hV01\"",
        "'hv01' = Name",
        "Name = __SERVER",
        "Name LIKE 'h%'",
        "Name LIKE '_v[0-9]1'",
        "Name LIKE 'hv[^1]1'",
        "NOT Name LIKE 'x%'",
        r#"Quoted = 'it\'s a \\ \"path\"'"#,
        "Number = 7 AND Number >= 7 AND Number <= 7 AND Number < 8 AND Number > 6",
        "Number <> 8 AND Number != 8",
        "Number = '7'",
        "8 > Number",
        "Number = 0x7",
        "Number < 7.5",
        "Minus < 0 AND Minus = -7",
        "Big = 18446744073709551615",
        "WireNumber > 5 AND WireNumber < 100",
        "Flag = TRUE AND WireFlag = false",
        "When > '20260101000000.000000+000' AND When < '2026-03-02T09:11:28Z'",
        "Nothing IS NULL AND Absent IS NULL AND Nothing = NULL AND NULL = Nothing AND NULL <> Name",
        "Name IS NOT NULL AND Name <> NULL",
        "NOT (Nothing = 1)",
        "PrivateProperties.VmID = 'ABC-def'",
        "PrivateProperties.Depth >= 3",
        "Embedded.A = 9",
        "PrivateProperties ISA 'Private'",
        "__this ISA \"Msvm_X\"",
        "__CLASS = 'msvm_x'",
        "Number = 1 OR Number = 7",
        "Number = 7 OR Number = 1 AND Name = 'no'",
        "(Number = 1 OR Number = 7) AND NOT (Name = 'no')",
        "Many IS NOT NULL",
    ] {
        assert!(matches(&subject, condition), "{condition}");
    }
    for condition in [
        "Nothing = 1",
        "Nothing <> 1",
        "Absent = 'x'",
        "Many = 1",
        "Name = 7",
        "Number = 'seven'",
        "Number.Inside = 1",
        "When = 'yesterday'",
        "(Number = 7 OR Number = 1) AND Name = 'no'",
    ] {
        assert!(!matches(&subject, condition), "{condition}");
    }
}

#[test]
fn relations_are_read_in_any_order_of_words() {
    let text = r"associators of {\\HV01\root\virtualization\v2:Msvm_ConcreteJob.InstanceID='Microsoft:A\\}'} \
        where resultclass = Msvm_X AssocClass=Msvm_Y Role = a ResultRole = b KeysOnly"
        .replace("\\\n", "");
    let Ok(Query::Related(related)) = Query::parse(&text.replace(" \\\n", " ")) else {
        panic!("{text}: {:?}", Query::parse(&text));
    };
    assert_eq!(
        related.query.object.key("InstanceID").as_deref(),
        Some("Microsoft:A\\}")
    );
    assert_eq!(related.query.association_class, Some("Msvm_Y".into()));
    assert_eq!(related.query.result_class, Some("Msvm_X".into()));
    assert_eq!(related.extent, RelatedExtent::Keys);
    let references =
        Query::parse("REFERENCES OF {X.A=1} WHERE ResultClass = Y ClassDefsOnly").expect("a query");
    assert!(matches!(references, Query::Related(it) if it.extent == RelatedExtent::Classes));
}

#[test]
fn what_is_no_query_is_refused_with_its_place() {
    for bad in [
        "",
        "SELECT",
        "SELECT * FROM",
        "SELECT * FROM X WHERE",
        "SELECT * FROM X WHERE a",
        "SELECT * FROM X WHERE a =",
        "SELECT * FROM X WHERE a = b",
        "SELECT * FROM X WHERE a = 'b",
        "SELECT * FROM X WHERE (a = 1",
        "SELECT * FROM X WHERE a = 1)",
        "SELECT * FROM X WHERE a LIKE 1",
        "SELECT * FROM X WHERE a < NULL",
        "SELECT a b FROM X",
        "SELECT * FROM X; DROP",
        "ASSOCIATORS OF X",
        "ASSOCIATORS OF {X.A=1} WHERE",
        "ASSOCIATORS OF {X.A=1} WHERE Nothing = Y",
        "ASSOCIATORS OF {X.A=1} WHERE Role = a Role = b",
        "REFERENCES OF {X.A=1} WHERE AssocClass = Y",
        "ASSOCIATORS OF {X.A=}",
        "UPDATE X",
        "SELECT * FROM X WHERE a = 12abc",
    ] {
        let error = Query::parse(bad).expect_err(bad);
        assert_eq!(error.kind(), ErrorKind::Malformed, "{bad}");
        assert!(error.to_string().starts_with("query, byte "), "{error}");
    }
    for large in [
        format!(
            "SELECT * FROM X WHERE {}a = 1{}",
            "(".repeat(1000),
            ")".repeat(1000)
        ),
        format!("SELECT * FROM X WHERE {} a = 1", "NOT ".repeat(1000)),
        format!("SELECT * FROM X WHERE {}a = 1", "a = 1 OR ".repeat(4000)),
        format!("SELECT * FROM X WHERE a = '{}'", "x".repeat(100_000)),
        format!("SELECT {}a FROM X", "a,".repeat(2000)),
        format!("SELECT a{} FROM X", ".a".repeat(100)),
    ] {
        let error = Query::parse(&large).expect_err("too much");
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    }
}

#[test]
fn what_a_query_demands_can_be_looked_up_by() {
    let demanded = |condition: &str| {
        let select = select(&format!("SELECT * FROM X WHERE {condition}"));
        select.demanded_text("Name").map(str::to_owned)
    };
    assert_eq!(demanded("Name = 'a'").as_deref(), Some("a"));
    assert_eq!(
        demanded("b = 1 AND (c = 2 AND name = 'a')").as_deref(),
        Some("a")
    );
    assert_eq!(demanded("Name = 'a' OR b = 1"), None);
    assert_eq!(demanded("NOT Name = 'a'"), None);
    assert_eq!(demanded("Name LIKE 'a'"), None);
    assert_eq!(demanded("Name.Inside = 'a'"), None);
}

/// `LIKE` by trying everything.
fn like_naive(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['%', rest @ ..] => (0..=text.len()).any(|at| like_naive(rest, &text[at..])),
        ['_', rest @ ..] => !text.is_empty() && like_naive(rest, &text[1..]),
        [one, rest @ ..] => {
            text.first().is_some_and(|it| it.eq_ignore_ascii_case(one))
                && like_naive(rest, &text[1..])
        }
    }
}

/// A condition as text, and what it comes to for an instance.
#[derive(Debug, Clone)]
enum Naive {
    Number(&'static str, &'static str, i64),
    Text(&'static str, bool, String),
    Null(&'static str, bool),
    Not(Box<Naive>),
    Both(Box<Naive>, Box<Naive>),
    Either(Box<Naive>, Box<Naive>),
}

impl Naive {
    fn text(&self) -> String {
        match self {
            Self::Number(name, sign, value) => format!("{name} {sign} {value}"),
            Self::Text(name, true, value) => format!("{name} = {}", quote(value)),
            Self::Text(name, false, value) => format!("{name} <> {}", quote(value)),
            Self::Null(name, true) => format!("{name} IS NULL"),
            Self::Null(name, false) => format!("{name} IS NOT NULL"),
            Self::Not(inner) => format!("NOT ({})", inner.text()),
            Self::Both(a, b) => format!("({}) AND ({})", a.text(), b.text()),
            Self::Either(a, b) => format!("{} OR {}", a.text(), b.text()),
        }
    }

    fn holds(&self, number: Option<i64>, text: Option<&str>) -> bool {
        let number_of = |name: &str| if name == "N" { number } else { None };
        match self {
            Self::Number(name, sign, wanted) => number_of(name).is_some_and(|it| match *sign {
                "=" => it == *wanted,
                "!=" | "<>" => it != *wanted,
                "<" => it < *wanted,
                "<=" => it <= *wanted,
                ">" => it > *wanted,
                _ => it >= *wanted,
            }),
            Self::Text(_, is_equal, wanted) => {
                text.is_some_and(|it| (it.to_lowercase() == wanted.to_lowercase()) == *is_equal)
            }
            Self::Null(name, is_null) => {
                let has_value = if *name == "N" {
                    number.is_some()
                } else {
                    text.is_some()
                };
                has_value != *is_null
            }
            Self::Not(inner) => !inner.holds(number, text),
            Self::Both(a, b) => a.holds(number, text) && b.holds(number, text),
            Self::Either(a, b) => a.holds(number, text) || b.holds(number, text),
        }
    }
}

fn naive() -> impl Strategy<Value = Naive> {
    let sign = prop::sample::select(vec!["=", "!=", "<>", "<", "<=", ">", ">="]);
    let leaf = prop_oneof![
        (sign, -3..3_i64).prop_map(|(sign, value)| Naive::Number("N", sign, value)),
        (any::<bool>(), "[aB'\\\\\"]{0,2}")
            .prop_map(|(is_equal, value)| Naive::Text("T", is_equal, value)),
        (prop::sample::select(vec!["N", "T"]), any::<bool>())
            .prop_map(|(name, is_null)| Naive::Null(name, is_null)),
    ];
    leaf.prop_recursive(4, 16, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|it| Naive::Not(Box::new(it))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Naive::Both(Box::new(a), Box::new(b))),
            (inner.clone(), inner).prop_map(|(a, b)| Naive::Either(Box::new(a), Box::new(b))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn conditions_agree_with_a_naive_evaluation(
        condition in naive(),
        number in prop::option::of(-3..3_i64),
        text in prop::option::of("[Ab'\\\\\"]{0,2}"),
        is_wire in any::<bool>(),
    ) {
        let mut instance = CimInstance::new("X").with("T", text.clone());
        if is_wire {
            instance.set("N", number.map(|it| it.to_string()));
        } else {
            instance.set("N", number);
        }
        prop_assert_eq!(
            matches(&instance, &condition.text()),
            condition.holds(number, text.as_deref()),
            "{} on {:?}", condition.text(), instance
        );
    }

    #[test]
    fn patterns_agree_with_trying_everything(pattern in "[ab%_]{0,8}", text in "[aAbB]{0,8}") {
        let characters: Vec<char> = pattern.chars().collect();
        let wanted: Vec<char> = text.chars().collect();
        prop_assert_eq!(LikePattern::new(&pattern).matches(&text), like_naive(&characters, &wanted));
    }

    #[test]
    fn quoting_brings_any_text_through(text in "\\PC{0,40}") {
        let select = select(&format!("SELECT * FROM X WHERE a = {}", quote(&text)));
        let is_same = matches!(
            select.condition,
            Some(Condition::Compare(_, _, wsman::wql::Literal::Text(ref it))) if *it == text
        );
        prop_assert!(is_same);
    }

    #[test]
    fn any_text_is_a_query_or_refused(text in "(SELECT|\\*|FROM|WHERE|AND|OR|NOT|LIKE|IS|NULL|ISA|OF|[a-z'\"{}()=<>.,0-9\\\\]| ){0,40}") {
        let _ = Query::parse(&text);
    }
}
