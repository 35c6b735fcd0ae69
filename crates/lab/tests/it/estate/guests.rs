//! The guest by itself, on disks in memory: what each way of freezing leaves behind.

use block::ReadAt;
use lab::Result;
use lab::guest::{
    Consistency, Examination, Guest, GuestDisks, GuestOs, Health, Layout, Quiesced, WriterState,
    examine,
};

use super::rig::{Bytes, MIB};

struct Memory(Vec<Vec<u8>>);

impl GuestDisks for Memory {
    fn read(&self, disk: usize, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let at = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[disk][at..at + buffer.len()]);
        Ok(())
    }
    fn write(&mut self, disk: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.0[disk][at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

const TAG: u64 = 77;

fn guest(os: GuestOs) -> (Guest, Memory) {
    let layout = Layout::from_offset(4096, 2, 32);
    let bytes = usize::try_from(layout.end().max(MIB)).unwrap();
    let disks = Memory(vec![vec![0; bytes], vec![0; bytes]]);
    (Guest::new(os, layout, TAG, 2), disks)
}

fn look(guest: &Guest, disks: &[Vec<u8>]) -> Examination {
    let disks: Vec<Bytes<'_>> = disks.iter().map(|it| Bytes(it)).collect();
    let disks: Vec<&dyn ReadAt> = disks.iter().map(|it| it as &dyn ReadAt).collect();
    examine(&disks, guest.layout(), guest.tag()).unwrap()
}

#[test]
fn empty_disks_are_told_from_disks_in_use() {
    let (mut guest, mut disks) = guest(GuestOs::Windows);
    assert_eq!(look(&guest, &disks.0).consistency, Consistency::Empty);
    guest.boot(&mut disks).unwrap();
    assert_eq!(look(&guest, &disks.0).consistency, Consistency::Crash);
}

#[test]
fn a_running_guest_is_crash_consistent_after_every_single_tick() {
    for os in [GuestOs::Windows, GuestOs::Linux] {
        let (mut guest, mut disks) = guest(os);
        guest.boot(&mut disks).unwrap();
        for tick in 0..300 {
            guest.tick(&mut disks).unwrap();
            let found = look(&guest, &disks.0);
            assert_eq!(found.consistency, Consistency::Crash, "tick {tick}");
            assert!(found.committed + 1 >= guest.committed());
        }
    }
}

#[test]
fn windows_that_holds_still_is_application_consistent() {
    let (mut guest, mut disks) = guest(GuestOs::Windows);
    guest.boot(&mut disks).unwrap();
    for _ in 0..50 {
        guest.tick(&mut disks).unwrap();
        assert_eq!(guest.quiesce(&mut disks).unwrap(), Quiesced::Held);
        let found = look(&guest, &disks.0);
        assert_eq!(found.consistency, Consistency::Application);
        assert_eq!((found.committed, guest.unflushed()), (guest.committed(), 0));
        guest.tick(&mut disks).unwrap();
        assert_eq!(
            look(&guest, &disks.0),
            found,
            "a frozen guest writes nothing"
        );
        guest.thaw(&mut disks).unwrap();
        assert_eq!(look(&guest, &disks.0).consistency, Consistency::Crash);
    }
}

#[test]
fn linux_that_holds_still_is_file_system_consistent() {
    let (mut guest, mut disks) = guest(GuestOs::Linux);
    guest.boot(&mut disks).unwrap();
    for _ in 0..50 {
        guest.tick(&mut disks).unwrap();
        assert_eq!(guest.quiesce(&mut disks).unwrap(), Quiesced::Held);
        assert_eq!(look(&guest, &disks.0).consistency, Consistency::FileSystem);
        guest.thaw(&mut disks).unwrap();
    }
}

#[test]
fn writers_that_lie_leave_disks_as_after_a_crash() {
    let (mut guest, mut disks) = guest(GuestOs::Windows);
    guest.boot(&mut disks).unwrap();
    guest.tick(&mut disks).unwrap();
    guest.set_writers(WriterState::Lies);
    assert_eq!(guest.quiesce(&mut disks).unwrap(), Quiesced::Held);
    assert_eq!(look(&guest, &disks.0).consistency, Consistency::Crash);
}

#[test]
fn writers_that_fail_or_hang_say_so() {
    let (mut guest, mut disks) = guest(GuestOs::Windows);
    guest.boot(&mut disks).unwrap();
    guest.set_writers(WriterState::Fails);
    assert_eq!(guest.quiesce(&mut disks).unwrap(), Quiesced::Refused);
    guest.set_writers(WriterState::TimesOut);
    assert_eq!(guest.quiesce(&mut disks).unwrap(), Quiesced::TimedOut);
}

#[test]
fn disks_of_two_moments_are_inconsistent() {
    let (mut guest, mut disks) = guest(GuestOs::Windows);
    guest.boot(&mut disks).unwrap();
    guest.quiesce(&mut disks).unwrap();
    let early = disks.0[1].clone();
    guest.thaw(&mut disks).unwrap();
    for _ in 0..5 {
        guest.tick(&mut disks).unwrap();
    }
    guest.quiesce(&mut disks).unwrap();
    let mixed = vec![disks.0[0].clone(), early];
    let found = look(&guest, &mixed).consistency;
    assert!(matches!(found, Consistency::Inconsistent(_)), "{found:?}");
}

#[test]
fn a_lost_or_torn_write_is_inconsistent() {
    let (mut guest, mut disks) = guest(GuestOs::Windows);
    guest.boot(&mut disks).unwrap();
    for _ in 0..20 {
        guest.tick(&mut disks).unwrap();
    }
    guest.quiesce(&mut disks).unwrap();
    let whole = disks.0.clone();
    let mut checked = 0;
    for disk in 0..2 {
        for record in 0..whole[disk].len() / 4096 {
            let range = record * 4096..(record + 1) * 4096;
            if whole[disk][range.clone()].iter().all(|byte| *byte == 0) {
                continue;
            }
            let mut torn = whole.clone();
            torn[disk][range.clone()][2048..].fill(0);
            let found = look(&guest, &torn).consistency;
            assert!(
                matches!(found, Consistency::Inconsistent(_)),
                "{disk} {record}: {found:?}"
            );
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked}");
}

#[test]
fn a_guest_boots_from_every_crash_and_loses_nothing_that_it_flushed() {
    let (mut guest, mut disks) = guest(GuestOs::Windows);
    guest.boot(&mut disks).unwrap();
    for round in 0..100 {
        guest.tick(&mut disks).unwrap();
        let before = guest.committed();
        guest.lose_power();
        let mut next = guest.twin();
        next.boot(&mut disks).unwrap();
        assert_eq!(next.health(), &Health::Working, "round {round}");
        assert!(next.committed() >= before, "round {round}");
        guest = next;
    }
}

#[test]
fn a_guest_on_inconsistent_disks_does_not_work() {
    let (mut guest, mut disks) = guest(GuestOs::Windows);
    guest.boot(&mut disks).unwrap();
    let at = usize::try_from(guest.layout().ledger.offset + 4096).unwrap();
    disks.0[0][at] ^= 1;
    let mut next = guest.twin();
    next.boot(&mut disks).unwrap();
    assert!(matches!(next.health(), Health::Broken(_)));
}

#[test]
fn a_saved_guest_goes_on_where_it_was() {
    let (mut guest, mut disks) = guest(GuestOs::Linux);
    guest.boot(&mut disks).unwrap();
    for _ in 0..10 {
        guest.tick(&mut disks).unwrap();
    }
    let memory = serde_json::to_string(&guest.memory()).unwrap();
    let mut again = guest.twin();
    again.resume(serde_json::from_str(&memory).unwrap());
    assert_eq!(again.unflushed(), guest.unflushed());
    for _ in 0..10 {
        again.tick(&mut disks).unwrap();
        assert_eq!(look(&again, &disks.0).consistency, Consistency::Crash);
    }
    again.shut_down(&mut disks).unwrap();
    assert_eq!(look(&again, &disks.0).consistency, Consistency::Application);
}
