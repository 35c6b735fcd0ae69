//! Limits on parallel work.

use host::facts::StorageKind;
use host::ids::NodeName;
use host::limits::{Admission, Demand, Limits, Refusal};
use proptest::prelude::*;

use super::facts::{disk, machine};
use super::fake::vm;

fn demand(number: u8, node: &str, drive: char) -> Demand {
    Demand {
        vm: vm(number),
        node: NodeName::new(node).expect("a name"),
        storages: vec![StorageKind::Local { drive }],
    }
}

#[test]
fn each_limit_holds_alone_and_a_permit_comes_back() {
    let admission = Admission::new(Limits {
        per_node: 2,
        per_storage: 1,
    });
    let first = admission
        .try_admit(&demand(1, "hv01", 'D'))
        .expect("admitted");
    assert_eq!(
        admission
            .try_admit(&demand(1, "hv02", 'E'))
            .expect_err("one job each"),
        Refusal::Machine
    );
    let storage = Refusal::Storage(StorageKind::Local { drive: 'D' });
    assert_eq!(
        admission
            .try_admit(&demand(2, "hv01", 'D'))
            .expect_err("full"),
        storage
    );
    let _other = admission
        .try_admit(&demand(2, "hv02", 'D'))
        .expect("another node's drive");
    let _second = admission
        .try_admit(&demand(3, "HV01.example.net", 'E'))
        .expect("admitted");
    assert_eq!(
        admission
            .try_admit(&demand(4, "hv01", 'F'))
            .expect_err("full"),
        Refusal::Node
    );
    drop(first);
    admission
        .try_admit(&demand(5, "hv01", 'D'))
        .expect("given back");
}

#[test]
fn a_shared_volume_is_the_same_from_every_node() {
    let admission = Admission::new(Limits {
        per_node: 9,
        per_storage: 1,
    });
    let mut machine = machine();
    machine.disks = vec![
        disk(0, "C:\\ClusterStorage\\Volume1\\a.vhdx"),
        disk(1, "c:\\clusterstorage\\VOLUME1\\b.vhdx"),
    ];
    let first = Demand::of(&machine);
    assert_eq!(first.storages.len(), 1);
    let second = Demand {
        vm: vm(2),
        node: NodeName::new("hv02").expect("a name"),
        ..first.clone()
    };
    let _held = admission.try_admit(&first).expect("admitted");
    assert!(matches!(
        admission.try_admit(&second),
        Err(Refusal::Storage(_))
    ));
}

#[test]
fn a_limit_of_zero_is_one() {
    let admission = Admission::new(Limits {
        per_node: 0,
        per_storage: 0,
    });
    let _held = admission
        .try_admit(&demand(1, "hv01", 'D'))
        .expect("admitted");
    assert_eq!(
        admission
            .try_admit(&demand(2, "hv01", 'E'))
            .expect_err("full"),
        Refusal::Node
    );
}

proptest! {
    #[test]
    fn no_order_of_coming_and_going_breaks_a_limit(steps in proptest::collection::vec((0_u8..6, 0_u8..2, 0_u8..2, any::<bool>()), 0..200)) {
        let admission = Admission::new(Limits { per_node: 2, per_storage: 2 });
        let mut held: Vec<(Demand, host::limits::Permit)> = Vec::new();
        for (number, node, drive, comes) in steps {
            if comes {
                let demand = demand(number, ["hv01", "hv02"][usize::from(node)], ['D', 'E'][usize::from(drive)]);
                let same_node = held.iter().filter(|(it, _)| it.node == demand.node).count();
                let same_drive = held.iter().filter(|(it, _)| it.node == demand.node && it.storages == demand.storages).count();
                let is_held = held.iter().any(|(it, _)| it.vm == demand.vm);
                let admitted = admission.try_admit(&demand);
                prop_assert_eq!(admitted.is_ok(), !is_held && same_node < 2 && same_drive < 2);
                held.extend(admitted.ok().map(|permit| (demand, permit)));
            } else if !held.is_empty() {
                held.remove(usize::from(number) % held.len());
            }
        }
        drop(held);
        for number in 0..2 {
            prop_assert!(admission.try_admit(&demand(number, "hv01", 'D')).is_ok());
        }
    }
}
