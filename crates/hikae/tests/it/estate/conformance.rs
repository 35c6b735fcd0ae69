//! The driver's contract, kept in every kind of estate.

use host::Clock;
use host::conformance::{Bytes, CHECKS, Driver, Fixture, Outcome, run_all};
use host::ids::VmId;
use lab::estate::WindowsGeneration;
use lab::guest::GuestOs;
use lab::provider::Language;
use wsman::client::ClientOptions;
use wsman::server::{ContextIds, ServiceOptions};

use super::odd::{Odd, small_pieces};
use super::place::{Home, Images, LabClock, Place, Plan, Tree};

/// Every check, with what may not be shown in such a place.
pub fn keeps_its_contract(place: &Place, driver: &dyn Driver) {
    let relocate = || place.relocate();
    let make_foreign = || place.make_foreign();
    let clock = LabClock(place.estate.clone());
    let now = || clock.now();
    let has_elsewhere = matches!(place.plan.home, Home::Cluster | Home::Share);
    let fixture = Fixture {
        driver,
        vm: place.id(),
        absent: VmId::from_bytes([9; 16]),
        relocate: has_elsewhere.then_some(&relocate),
        make_foreign: Some(&make_foreign),
        bytes: Bytes::Readable,
        now: &now,
    };
    let outcomes = run_all(&fixture);
    assert_eq!(outcomes.len(), CHECKS.len());
    for (check, outcome) in outcomes {
        let may_be_skipped = match check {
            "a checkpoint is followed to where its machine went" => !has_elsewhere,
            // Each token is asked about; a VHD has none.
            _ if check.starts_with("settling leaves") => place.plan.images == Images::Vhd,
            _ => false,
        };
        match outcome {
            Outcome::Kept => {}
            Outcome::Skipped(_) if may_be_skipped => {}
            other => panic!("{:?}: {check}: {other:?}", place.plan),
        }
    }
}

fn in_every_home(windows: WindowsGeneration, os: GuestOs) {
    for (home, images, tree) in [
        (Home::Cluster, Images::Vhdx, Tree::Bare),
        (Home::Cluster, Images::Vhd, Tree::Branch),
        (Home::Drive, Images::Vhdx, Tree::Branch),
        (Home::Drive, Images::Vhd, Tree::Bare),
        (Home::Share, Images::Vhdx, Tree::Bare),
    ] {
        let plan = Plan {
            windows,
            os,
            images,
            home,
            ..Plan::new()
        };
        let place = Place::new(match tree {
            Tree::Bare => plan,
            Tree::Branch => plan.with_tree(),
        });
        keeps_its_contract(&place, &place.driver());
    }
}

#[test]
fn on_server_2016_with_windows_inside() {
    in_every_home(WindowsGeneration::Server2016, GuestOs::Windows);
}

#[test]
fn on_server_2016_with_linux_inside() {
    in_every_home(WindowsGeneration::Server2016, GuestOs::Linux);
}

#[test]
fn on_server_2019_with_windows_inside() {
    in_every_home(WindowsGeneration::Server2019, GuestOs::Windows);
}

#[test]
fn on_server_2019_with_linux_inside() {
    in_every_home(WindowsGeneration::Server2019, GuestOs::Linux);
}

#[test]
fn on_server_2022_with_windows_inside() {
    in_every_home(WindowsGeneration::Server2022, GuestOs::Windows);
}

#[test]
fn on_server_2022_with_linux_inside() {
    in_every_home(WindowsGeneration::Server2022, GuestOs::Linux);
}

#[test]
fn on_server_2025_with_windows_inside() {
    in_every_home(WindowsGeneration::Server2025, GuestOs::Windows);
}

#[test]
fn on_server_2025_with_linux_inside() {
    in_every_home(WindowsGeneration::Server2025, GuestOs::Linux);
}

#[test]
fn over_sockets_with_a_login_sealed_bodies_and_answers_in_chunks() {
    for home in [Home::Cluster, Home::Drive] {
        let place = Place::new(Plan {
            home,
            language: Language::Japanese,
            ..Plan::new()
        });
        let wire = place.wire(ServiceOptions::default());
        let between = |_: &str, transport| transport;
        let (driver, _proxies) = place.driver_over(&wire, &between, &ClientOptions::default());
        keeps_its_contract(&place, &driver);
    }
}

#[test]
fn over_sockets_with_servers_that_are_odd() {
    let place = Place::new(Plan::new());
    let wire = place.wire(ServiceOptions {
        context_ids: ContextIds::Renewed,
        ..ServiceOptions::default()
    });
    let between = |_: &str, transport| Odd::with_seed(40, transport);
    let (driver, _proxies) = place.driver_over(&wire, &between, &small_pieces(3));
    keeps_its_contract(&place, &driver);
}
