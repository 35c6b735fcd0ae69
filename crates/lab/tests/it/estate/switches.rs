//! The switches: each has a name, two answers, and a default that is the harder one.

use std::collections::BTreeSet;

use lab::estate::{Answer, Switch, Switches};

#[test]
fn every_switch_has_a_name_of_its_own_and_is_found_by_it() {
    let names: BTreeSet<&str> = Switch::ALL.iter().map(|it| it.name()).collect();
    assert_eq!(names.len(), Switch::ALL.len());
    for switch in Switch::ALL {
        assert_eq!(switch.name().parse::<Switch>().unwrap(), *switch);
    }
    assert!("no-such-switch".parse::<Switch>().is_err());
}

#[test]
fn the_harder_answer_is_the_default_with_one_exception() {
    let usual = Switches::default();
    let kind: Vec<Switch> = Switch::ALL
        .iter()
        .copied()
        .filter(|it| usual.is_kind(*it))
        .collect();
    assert_eq!(kind, [Switch::WqlOnVirtualization]);
    let hard = usual.with(Switch::WqlOnVirtualization, Answer::Pessimistic);
    assert!(Switch::ALL.iter().all(|it| !hard.is_kind(*it)));
    let kind = Switches::all_optimistic();
    assert!(Switch::ALL.iter().all(|it| kind.is_kind(*it)));
}
