//! The suite over the driver and the host that lives in the tests.

use host::Clock;
use host::conformance::{Bytes, Fixture, Outcome, run_all};

use super::fake::{FakeEstate, vm};

#[test]
fn the_driver_keeps_the_contract_on_a_host_with_a_neighbour() {
    let estate = FakeEstate::new(&["hv01", "hv02"]);
    estate.nodes[0].add_vm(vm(1), "sql01", &["D:\\vm\\a.vhdx"]);
    estate.nodes[0].add_vm(vm(2), "web01", &["D:\\vm\\w.vhdx"]);
    let driver = estate.driver();
    let relocate = || {
        let is_here = estate.nodes[0]
            .lock()
            .of("Msvm_ComputerSystem")
            .iter()
            .any(|it| it.text_ref("Name") == Some(&vm(1).to_string()));
        let (from, to) = if is_here { (0, 1) } else { (1, 0) };
        estate.migrate(vm(1), from, to);
    };
    let make_foreign = || {
        let is_here = estate.nodes[0]
            .lock()
            .of("Msvm_ComputerSystem")
            .iter()
            .any(|it| it.text_ref("Name") == Some(&vm(1).to_string()));
        let node = &estate.nodes[usize::from(!is_here)];
        node.add_foreign(
            vm(1),
            "theirs",
            "Microsoft:Hyper-V:Snapshot:Recovery",
            estate.clock.now().0,
        );
    };
    let now = || estate.clock.now();
    let fixture = Fixture {
        driver: &driver,
        vm: vm(1),
        absent: vm(99),
        relocate: Some(&relocate),
        make_foreign: Some(&make_foreign),
        bytes: Bytes::Absent,
        now: &now,
    };
    let outcomes = run_all(&fixture);
    let others: Vec<_> = outcomes
        .iter()
        .filter(|(_, outcome)| *outcome != Outcome::Kept)
        .collect();
    let [(_, Outcome::Skipped(_))] = others.as_slice() else {
        panic!("{others:#?}");
    };
}
