//! The whole round, on a smaller sample.

use engine::ErrorKind;
use engine::quickstart::{Leftovers, QuickstartRequest, quickstart};
use vdisk::vhdx::IdSource;

use crate::support::{context, environment};

fn wish(folder: std::path::PathBuf, leftovers: Leftovers) -> QuickstartRequest {
    let ids = IdSource::seeded(3);
    QuickstartRequest {
        folder,
        size_bytes: 64 << 20,
        leftovers,
        environment: environment(),
        ids,
    }
}

#[test]
fn the_whole_round_is_proved_and_leaves_nothing_unless_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("try");
    let report = quickstart(&wish(place.clone(), Leftovers::Keep), context()).unwrap();
    assert!(report.is_proved);
    assert_eq!(report.steps.len(), 8);
    assert_eq!(report.used_bytes, 48 << 20);
    assert!(report.changed_bytes > 0);
    assert_eq!(report.first.read_bytes, report.used_bytes);
    assert_eq!(report.second.changed_blocks * 65_536, report.changed_bytes);
    assert!(report.repository_bytes < report.used_bytes);
    for name in [
        "sample.vhdx",
        "repository",
        "quickstart.key",
        "restored-1.vhdx",
        "restored-2.vhdx",
    ] {
        assert!(place.join(name).exists(), "{name}");
    }
    let again = quickstart(&wish(place, Leftovers::Keep), context()).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    let other = folder.path().join("other");
    quickstart(&wish(other.clone(), Leftovers::Remove), context()).unwrap();
    assert!(!other.exists());
}
