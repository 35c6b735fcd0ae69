//! Many machines: how much is asked of a node does not depend on how many it has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use host::boundary::Inventory;
use host::coverage::plan_coverage;
use host::eligibility::{Evidence, judge};
use host::hyperv::{HyperV, HyperVOptions};
use lab::provider::{Language, Pace, SharedEstate};
use lab::scenario::Scenario;
use wsman::client::ClientOptions;
use wsman::transport::{Answer, Post, Transport};

use super::place::{LabClock, calm, connection, direct};

/// Requests by what they ask, for each node.
type Asked = BTreeMap<String, BTreeMap<&'static str, usize>>;

const ACTIONS: &[(&str, &str)] = &[
    ("enumerate", "/enumeration/Enumerate<"),
    ("pull", "/enumeration/Pull<"),
    ("release", "/enumeration/Release<"),
    ("get", "/transfer/Get<"),
];

struct Counting {
    inner: Arc<dyn Transport>,
    node: String,
    asked: Arc<Mutex<Asked>>,
}

impl Transport for Counting {
    fn post(&self, post: &Post<'_>) -> wsman::Result<Answer> {
        let body = std::str::from_utf8(post.body).expect("our own client writes UTF-8");
        let action = ACTIONS.iter().find(|(_, action)| body.contains(action));
        let action = action.map_or("invoke", |it| it.0);
        let mut asked = self.asked.lock().expect("counts");
        *asked
            .entry(self.node.clone())
            .or_default()
            .entry(action)
            .or_default() += 1;
        drop(asked);
        self.inner.post(post)
    }

    fn address(&self) -> &str {
        self.inner.address()
    }
}

/// Two clusters of two nodes and a host of its own, with so many machines each.
fn scenario(count: usize) -> String {
    let nodes = ["N1", "N2", "N3", "N4", "N5"];
    let hosts: Vec<String> = nodes
        .iter()
        .map(|name| format!(r#"{{ "name": "{name}" }}"#))
        .collect();
    let vms: Vec<String> = nodes
        .iter()
        .map(|name| {
            let cluster = match *name {
                "N1" | "N2" => Some("A"),
                "N3" | "N4" => Some("B"),
                _ => None,
            };
            let place = match cluster {
                Some(_) => format!(r#""clustered": true, "folder": "C:\\ClusterStorage\\Vol\\{name}""#),
                None => r#""clustered": false"#.to_owned(),
            };
            format!(
                r#"{{ "name": "vm-{name}-", "host": "{name}", "count": {count}, "running": false, {place},
                     "disks": [ {{ "file": "os.vhdx", "mib": 4096 }}, {{ "file": "data.vhdx", "mib": 8192 }} ] }}"#
            )
        })
        .collect();
    format!(
        r#"{{ "data": "lazy", "hosts": [ {} ],
             "clusters": [ {{ "name": "A", "nodes": ["N1", "N2"], "csv": [ {{ "name": "Vol", "gib": 100000 }} ] }},
                           {{ "name": "B", "nodes": ["N3", "N4"], "csv": [ {{ "name": "Vol", "gib": 100000 }} ] }} ],
             "vms": [ {} ] }}"#,
        hosts.join(", "),
        vms.join(", ")
    )
}

/// What an inventory with coverage and eligibility asks of each node.
fn asked_about(count: usize) -> Asked {
    let folder = tempfile::tempdir().expect("a folder");
    let estate = Scenario::parse(&scenario(count))
        .expect("a scenario")
        .build(folder.path())
        .expect("an estate");
    let estate = SharedEstate::new(estate, Pace::PerRequest(Duration::from_millis(1)));
    let asked: Arc<Mutex<Asked>> = Arc::default();
    let options = ClientOptions::default();
    let nodes = ["N1", "N2", "N3", "N4", "N5"].map(|name| {
        let counting: Arc<dyn Transport> = Arc::new(Counting {
            inner: direct(&estate, Language::English, name),
            node: name.to_owned(),
            asked: asked.clone(),
        });
        connection(&estate, name, counting, &options)
    });
    let clock = Arc::new(LabClock(estate.clone()));
    let driver = HyperV::new(nodes, None, clock, HyperVOptions::default()).expect("a driver");
    let report = driver.inventory(&calm()).expect("an inventory");
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(report.machines.len(), 5 * count);
    for machine in &report.machines {
        assert_eq!(
            plan_coverage(machine, &[]).lines.len(),
            2,
            "{}",
            machine.name
        );
        assert!(!judge(&Evidence::of(machine)).rules.is_empty());
        assert_eq!(machine.role.is_some(), !machine.name.starts_with("vm-N5"));
    }
    let asked = asked.lock().expect("counts");
    asked.clone()
}

#[test]
fn a_node_is_asked_as_often_for_one_machine_as_for_many() {
    let pulls = |asked: &Asked| -> usize {
        let each = asked.values().filter_map(|it| it.get("pull"));
        each.sum()
    };
    let without_pulls = |asked: &Asked| {
        let mut asked = asked.clone();
        for node in asked.values_mut() {
            node.remove("pull");
        }
        asked
    };
    let few = asked_about(1);
    let many = asked_about(60);
    assert_eq!(without_pulls(&few), without_pulls(&many));
    assert!(
        few.values().all(|it| it.values().sum::<usize>() <= 60),
        "{few:?}"
    );
    // What does not fit one answer is pulled, and that by the hundred.
    assert!(pulls(&many) <= 300 * 8, "{} pulls", pulls(&many));
}
