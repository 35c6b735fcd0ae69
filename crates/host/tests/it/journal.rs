//! The custody journal: durable before it answers, and honest about damage.

use std::io::Write;
use std::path::Path;

use host::custody::{Closing, CustodyLog, HeldKind, Intent, JournalFile};
use host::ids::{JobId, NodeName};
use host::{ErrorKind, Timestamp};
use proptest::prelude::*;

use super::fake::vm;

fn intent(number: u8) -> Intent {
    Intent {
        job: JobId::from_bytes([number; 16]),
        kind: HeldKind::Checkpoint,
        vm: vm(number),
        node: NodeName::new("hv01").expect("a name"),
        at: Timestamp(i64::from(number)),
        host_at: None,
        before: vec!["Microsoft:AB".to_owned()],
    }
}

fn open(path: &Path) -> JournalFile {
    JournalFile::open(path).expect("a journal")
}

#[test]
fn what_is_open_survives_and_what_is_closed_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("custody");
    let journal = open(&path);
    let first = journal.intend(intent(1)).expect("written");
    let second = journal.intend(intent(2)).expect("written");
    journal.made(second, "Microsoft:CD").expect("written");
    journal.close(first, Closing::Removed).expect("written");
    journal
        .close(first, Closing::Removed)
        .expect("closed is closed");
    drop(journal);
    let entries = open(&path).open_entries().expect("entries");
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].id, second);
    assert_eq!(entries[0].made.as_deref(), Some("Microsoft:CD"));
    assert_eq!(entries[0].intent, intent(2));
}

#[test]
fn a_second_process_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("custody");
    let journal = open(&path);
    assert_eq!(
        JournalFile::open(&path).expect_err("in use").kind(),
        ErrorKind::Busy
    );
    drop(journal);
    open(&path);
}

#[test]
fn a_line_that_a_crash_cut_off_is_dropped_and_written_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("custody");
    let journal = open(&path);
    journal.intend(intent(1)).expect("written");
    let whole = std::fs::metadata(&path).expect("a file").len();
    journal.intend(intent(2)).expect("written");
    drop(journal);
    let all = std::fs::read(&path).expect("a file");
    for cut in usize::try_from(whole).expect("small")..all.len() {
        std::fs::write(&path, &all[..cut]).expect("written");
        let journal = open(&path);
        assert_eq!(
            journal.open_entries().expect("entries").len(),
            1,
            "cut at {cut}"
        );
        journal.intend(intent(3)).expect("written");
        drop(journal);
        assert_eq!(
            open(&path).open_entries().expect("entries").len(),
            2,
            "cut at {cut}"
        );
    }
}

#[test]
fn a_damaged_line_is_an_error_and_not_a_lost_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("custody");
    let journal = open(&path);
    journal.intend(intent(1)).expect("written");
    journal.intend(intent(2)).expect("written");
    drop(journal);
    let mut text = std::fs::read(&path).expect("a file");
    let at = text.len() / 2;
    text[at] ^= 1;
    std::fs::write(&path, &text).expect("written");
    assert_eq!(
        JournalFile::open(&path).expect_err("damaged").kind(),
        ErrorKind::Custody
    );
    std::fs::write(&path, b"something else\n").expect("written");
    assert_eq!(
        JournalFile::open(&path).expect_err("no journal").kind(),
        ErrorKind::Custody
    );
}

#[test]
fn a_journal_of_closed_entries_is_written_anew_and_stays_small() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("custody");
    let journal = open(&path);
    let kept = journal.intend(intent(9)).expect("written");
    for _ in 0..1500 {
        let entry = journal.intend(intent(1)).expect("written");
        journal.close(entry, Closing::Removed).expect("written");
    }
    let size = std::fs::metadata(&path).expect("a file").len();
    assert!(size < 600 << 10, "{size} bytes");
    assert_eq!(
        JournalFile::open(&path).expect_err("in use").kind(),
        ErrorKind::Busy
    );
    drop(journal);
    let entries = open(&path).open_entries().expect("entries");
    assert_eq!(entries.iter().map(|it| it.id).collect::<Vec<_>>(), [kept]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_content_of_the_file_makes_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), has_header: bool) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("custody");
        let mut file = std::fs::File::create(&path).expect("a file");
        if has_header {
            file.write_all(b"hikae-custody 1\n").expect("written");
        }
        bytes.retain(|byte| *byte != 0);
        file.write_all(&bytes).expect("written");
        drop(file);
        if let Ok(journal) = JournalFile::open(&path) {
            journal.intend(intent(1)).expect("written");
        }
    }
}
