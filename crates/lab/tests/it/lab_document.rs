//! The tables of docs/LAB.md: they say what the code does.
//!
//! With `HIKAE_WRITE_TABLES` set, the tables are written anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use lab::control::fault_kinds;
use lab::estate::{Switch, WindowsGeneration};
use lab::provider::{Coverage, HostProvider};
use lab::schema::ClassTables;
use wsman::cim::ClassName;

fn document() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/LAB.md")
}

fn classes(tables: &ClassTables) -> String {
    let mut rows = BTreeSet::new();
    for set in tables.namespaces() {
        for schema in set.classes() {
            let name = schema.name.as_str();
            let is_ours = ["Msvm_", "MSCluster_", "Win32_", "CIM_DataFile"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            if !is_ours {
                continue;
            }
            let coverage = match HostProvider::coverage(&schema.name) {
                Coverage::Modelled => "modelled",
                Coverage::Empty => "embedded",
                Coverage::Refused => "refused",
            };
            let origin = tables.origin(set.namespace(), &schema.name).unwrap_or("");
            let page = origin.split(' ').nth(1).unwrap_or("");
            rows.insert(format!(
                "| {} | {name} | {coverage} | {page} |",
                set.namespace()
            ));
        }
    }
    let mut text = "| namespace | class | here | page |\n|---|---|---|---|\n".to_owned();
    for row in rows {
        writeln!(text, "{row}").expect("text");
    }
    text
}

fn methods(tables: &ClassTables) -> String {
    let mut rows = BTreeSet::new();
    for (class, method) in HostProvider::methods() {
        let mut sets = tables.namespaces();
        let found = sets.find_map(|set| set.class(&ClassName::new(class)));
        let schema = found.unwrap_or_else(|| panic!("{class} is in no table"));
        let declared = schema.methods.get(method);
        let declared = declared.unwrap_or_else(|| panic!("{class} has no method {method}"));
        let parameters: Vec<&str> = declared
            .parameters
            .iter()
            .map(|it| it.name.as_str())
            .collect();
        rows.insert(format!(
            "| {class} | {method} | {} |",
            parameters.join(", ")
        ));
    }
    let mut text = "| class | method | parameters |\n|---|---|---|\n".to_owned();
    for row in rows {
        writeln!(text, "{row}").expect("text");
    }
    text
}

fn faults() -> String {
    let mut text = "| kind | takes | what happens |\n|---|---|---|\n".to_owned();
    for kind in fault_kinds() {
        let takes: Vec<String> = kind.takes.iter().map(|it| format!("--{it}")).collect();
        writeln!(
            text,
            "| {} | {} | {} |",
            kind.kind,
            takes.join(" "),
            kind.help
        )
        .expect("text");
    }
    text
}

fn replaced(text: &str, mark: &str, table: &str) -> String {
    let (open, close) = (format!("<!-- {mark} -->\n"), format!("<!-- /{mark} -->"));
    let (before, rest) = text.split_once(&open).expect("the mark opens");
    let (_, after) = rest.split_once(&close).expect("the mark closes");
    format!("{before}{open}{table}{close}{after}")
}

#[test]
fn the_document_says_which_classes_methods_and_faults_there_are() {
    let tables = ClassTables::load(WindowsGeneration::Server2025).expect("tables");
    let path = document();
    let text = std::fs::read_to_string(&path).expect("docs/LAB.md");
    let wanted = replaced(&text, "classes", &classes(&tables));
    let wanted = replaced(&wanted, "methods", &methods(&tables));
    let wanted = replaced(&wanted, "faults", &faults());
    if std::env::var_os("HIKAE_WRITE_TABLES").is_some() {
        std::fs::write(&path, &wanted).expect("write docs/LAB.md");
    }
    let now = std::fs::read_to_string(&path).expect("docs/LAB.md");
    assert!(
        now == wanted,
        "docs/LAB.md is behind the code: run this test with HIKAE_WRITE_TABLES=1"
    );
}

#[test]
fn the_document_tells_both_answers_of_every_switch() {
    let text = std::fs::read_to_string(document()).expect("docs/LAB.md");
    let told: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(name, _)| name)
        .collect();
    let known: Vec<&str> = Switch::ALL.iter().map(|switch| switch.name()).collect();
    assert_eq!(told, known);
}
