//! Changed ranges: windows, answers that do not fit, and everything that makes them worthless.

use block::ByteRange;
use host::boundary::Checkpoints;
use host::checkpoint::{Changes, Checkpoint};
use host::ids::{DiskIdentity, TrackingScheme, TrackingToken};
use host::{CancelToken, ErrorKind};

use super::fake::{Act, vm};
use super::recovery::{Scene, crash, scene};

const SIZE: u64 = 40 << 30;

fn tracked() -> (Scene, Checkpoint, TrackingToken) {
    let scene = scene();
    let made = scene.create(crash()).expect("a checkpoint");
    let token = TrackingToken {
        scheme: TrackingScheme::Rct,
        value: "rct:known".to_owned(),
        disk: made.disks[0].identity,
        size_bytes: SIZE,
    };
    scene.estate.nodes[0]
        .lock()
        .known_limits
        .push("rct:known".to_owned());
    (scene, made, token)
}

fn ask(scene: &Scene, made: &Checkpoint, token: &TrackingToken) -> host::Result<Changes> {
    scene
        .driver
        .changed_ranges(&made.reference, &made.disks[0], token, &CancelToken::new())
}

fn known(changes: Changes) -> Vec<ByteRange> {
    match changes {
        Changes::Known(ranges) => ranges.iter().collect(),
        Changes::Lost { reason } => panic!("lost: {reason}"),
    }
}

fn lost(changes: host::Result<Changes>) -> String {
    match changes {
        Ok(Changes::Lost { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn windows_are_halved_until_answers_fit_and_the_ranges_are_whole() {
    let (scene, made, token) = tracked();
    let changes = vec![
        (0, 1),
        (8 << 30, 512),
        ((16 << 30) - 4096, 8192),
        (SIZE - 1, 1),
    ];
    {
        let mut rows = scene.estate.nodes[0].lock();
        rows.changes = changes.clone();
        rows.change_window_most = 1 << 30;
    }
    let found = known(ask(&scene, &made, &token).expect("changes"));
    let expected: Vec<ByteRange> = changes
        .iter()
        .map(|(offset, length_bytes)| ByteRange {
            offset: *offset,
            length_bytes: *length_bytes,
        })
        .collect();
    assert_eq!(found, expected);
    let calls = scene.estate.nodes[0].calls("GetVirtualDiskChanges");
    assert_eq!(calls, 43, "three refusals, then forty windows");
}

#[test]
fn too_many_changes_for_the_smallest_window_lose_tracking() {
    let (scene, made, token) = tracked();
    scene.estate.nodes[0].lock().change_window_most = 1 << 20;
    assert!(lost(ask(&scene, &made, &token)).contains("too many"));
}

#[test]
fn a_host_that_wants_less_than_the_size_gets_less() {
    let (scene, made, token) = tracked();
    for _ in 0..4 {
        // Four windows go well, and the last, which reaches the end, is refused once.
        scene.estate.nodes[0].act("GetVirtualDiskChanges", Act::Hang);
    }
    scene.estate.nodes[0].act("GetVirtualDiskChanges", Act::Return(32_773));
    assert_eq!(known(ask(&scene, &made, &token).expect("changes")), []);
    assert_eq!(scene.estate.nodes[0].calls("GetVirtualDiskChanges"), 7);
}

#[test]
fn a_token_that_does_not_belong_to_the_disk_is_lost_without_asking() {
    let (scene, made, token) = tracked();
    let other_disk = TrackingToken {
        disk: Some(DiskIdentity::from_bytes([9; 16])),
        ..token.clone()
    };
    let other_size = TrackingToken {
        size_bytes: SIZE + 512,
        ..token.clone()
    };
    let other_tracker = TrackingToken {
        scheme: TrackingScheme::DirtyBitmap,
        ..token
    };
    for token in [other_disk, other_size, other_tracker] {
        lost(ask(&scene, &made, &token));
    }
    assert_eq!(scene.estate.nodes[0].calls("GetVirtualDiskChanges"), 0);
}

#[test]
fn an_identifier_that_the_host_forgot_is_lost_and_a_dead_line_is_an_error() {
    let (scene, made, token) = tracked();
    let forgotten = TrackingToken {
        value: "rct:forgotten".to_owned(),
        ..token.clone()
    };
    lost(ask(&scene, &made, &forgotten));
    scene.estate.nodes[0].act("GetVirtualDiskChanges", Act::Return(32_779));
    assert!(lost(ask(&scene, &made, &token)).contains("32779"));
    for _ in 0..8 {
        scene.estate.nodes[0].act("GetVirtualDiskChanges", Act::Cut { with_effect: false });
    }
    let error = ask(&scene, &made, &token).expect_err("the line is dead");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
}

#[test]
fn a_run_that_reaches_out_of_its_window_is_not_believed() {
    // The fake clips runs to the window; here it is told of a disk that is larger than it said.
    let (scene, mut made, token) = tracked();
    made.disks[0].size_bytes = Some(SIZE);
    scene.estate.nodes[0].lock().changes = vec![(SIZE - 512, 4096)];
    let found = known(ask(&scene, &made, &token).expect("changes"));
    assert_eq!(
        found,
        [ByteRange {
            offset: SIZE - 512,
            length_bytes: 512
        }]
    );
    let cancel = CancelToken::new();
    cancel.cancel();
    let error = scene
        .driver
        .changed_ranges(&made.reference, &made.disks[0], &token, &cancel)
        .expect_err("told to stop");
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(made.reference.vm, vm(1));
}
