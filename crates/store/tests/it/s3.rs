//! The S3 driver against a server on the wire, above all when answers are lost.

use store::conformance::{CheckId, CheckOptions, Verdict};
use store::s3::{S3Options, S3Store};
use store::{ErrorKind, Prefix, Store, list_all};

use crate::bucket_server::{BUCKET, BucketServer, Manner, Trouble};
use crate::conformance::{assert_conforms, report_of};
use crate::name;

fn open(server: &BucketServer) -> S3Store {
    S3Store::open(&server.options()).expect("open")
}

#[test]
fn the_s3_store_conforms() {
    let server = BucketServer::start(Manner::Proper);
    assert_conforms(&open(&server));
}

#[test]
fn a_server_that_ignores_if_none_match_is_refused() {
    let server = BucketServer::start(Manner::IgnoresConditions);
    let mut options = CheckOptions::new(Prefix::new("check-store/one").expect("valid"));
    options.big_object_bytes = 1 << 20;
    let report = report_of(&open(&server), &options);
    assert!(!report.is_usable());
    let Some(Verdict::Failed(seen)) = report.verdict(CheckId::CREATE_IF_ABSENT) else {
        panic!("{report:#?}");
    };
    assert!(seen.contains("the old bytes are lost"), "{seen}");
    assert!(matches!(
        report.verdict(CheckId::ONE_WINNER),
        Some(Verdict::Failed(_))
    ));
    assert_eq!(
        report.verdict(CheckId::READ_AFTER_WRITE),
        Some(&Verdict::Passed)
    );
}

#[test]
fn a_put_whose_answer_was_lost_is_known_for_its_own() {
    for manner in [Manner::Proper, Manner::ForgetsMetadata] {
        for trouble in [Trouble::FailsAfter, Trouble::HangsUpAfter] {
            let server = BucketServer::start(manner);
            let store = open(&server);
            server.troubles(&[trouble]);
            let what = format!("{manner:?} {trouble:?}");
            store.put_new(&name("a"), b"mine").expect(&what);
            assert_eq!(store.get(&name("a")).expect("there"), b"mine");
            assert_eq!(server.puts(), 2, "{what}: it was sent again, and refused");
        }
    }
}

#[test]
fn a_rival_that_won_while_an_answer_was_lost_is_not_taken_for_us() {
    for manner in [Manner::Proper, Manner::ForgetsMetadata] {
        let server = BucketServer::start(manner);
        let store = open(&server);
        server.troubles(&[Trouble::RivalWins]);
        let error = store
            .put_new(&name("a"), b"mine!")
            .expect_err("lost the race");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{manner:?}");
        assert_eq!(store.get(&name("a")).expect("there"), b"rival");
    }
}

#[test]
fn the_same_bytes_of_a_rival_are_still_the_rivals() {
    let server = BucketServer::start(Manner::Proper);
    let store = open(&server);
    // The rival's object carries the rival's put id, so its bytes do not matter.
    server.troubles(&[Trouble::Busy]);
    open(&server)
        .put_new(&name("a"), b"same")
        .expect("the rival, after a repetition");
    server.troubles(&[Trouble::Busy]);
    let error = store.put_new(&name("a"), b"same").expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
}

#[test]
fn a_busy_server_is_asked_again_and_then_given_up() {
    let server = BucketServer::start(Manner::Proper);
    let store = open(&server);
    server.troubles(&[Trouble::Busy, Trouble::Conflict, Trouble::Busy]);
    store.put_new(&name("a"), b"x").expect("the fourth attempt");
    assert_eq!(server.puts(), 4);

    server.troubles(&[Trouble::Busy; 4]);
    let error = store.put_new(&name("b"), b"x").expect_err("given up");
    assert!(error.is_retryable(), "{error}");
    assert_eq!(
        store.get(&name("b")).expect_err("absent").kind(),
        ErrorKind::NotFound
    );

    server.troubles(&[
        Trouble::Busy,
        Trouble::Busy,
        Trouble::Busy,
        Trouble::FailsAfter,
    ]);
    store
        .put_new(&name("c"), b"x")
        .expect("the last attempt happened");
    assert_eq!(store.get(&name("c")).expect("there"), b"x");
}

#[test]
fn no_space_and_quotas_are_full_and_not_repeated() {
    for trouble in [Trouble::OverQuota, Trouble::Full] {
        let server = BucketServer::start(Manner::Proper);
        let mut options = server.options();
        options.put_attempts = 3;
        let store = S3Store::open(&options).expect("open");
        server.troubles(&[trouble]);
        let error = store.put_new(&name("a"), b"x").expect_err("full");
        assert_eq!(error.kind(), ErrorKind::Full, "{trouble:?}: {error}");
        assert_eq!(server.puts(), 1);
    }
}

#[test]
fn wrong_secrets_missing_buckets_and_dead_servers_are_told_apart() {
    let server = BucketServer::start(Manner::Proper);
    let denied =
        S3Store::open(&server.options_of(&format!("s3://{BUCKET}"), "guess")).expect("open");
    for error in [
        denied.put_new(&name("a"), b"x").expect_err("denied"),
        denied.get(&name("a")).expect_err("denied"),
        denied.list(&Prefix::root(), None, 1).expect_err("denied"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }

    let elsewhere =
        S3Store::open(&server.options_of("s3://no-such-bucket", "secret")).expect("open");
    let error = elsewhere
        .list(&Prefix::root(), None, 1)
        .expect_err("no bucket");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");

    let options = server.options();
    drop(server);
    let dead = S3Store::open(&options).expect("open");
    assert!(dead.get(&name("a")).expect_err("dead").is_retryable());
    assert!(
        dead.put_new(&name("a"), b"x")
            .expect_err("dead")
            .is_retryable()
    );
}

#[test]
fn prefixes_of_one_bucket_do_not_see_each_other() {
    let server = BucketServer::start(Manner::Proper);
    let open = |url: &str| S3Store::open(&server.options_of(url, "secret")).expect("open");
    let (whole, one) = (
        open(&format!("s3://{BUCKET}")),
        open(&format!("s3://{BUCKET}/one/")),
    );
    let other = open(&format!("s3://{BUCKET}/one-other"));
    one.put_new(&name("a"), b"1").expect("put");
    other.put_new(&name("a"), b"2").expect("put");
    assert_eq!(one.get(&name("a")).expect("get"), b"1");
    let names = |store: &S3Store| -> Vec<String> {
        list_all(store, &Prefix::root())
            .map(|e| e.expect("entry").name.to_string())
            .collect()
    };
    assert_eq!(names(&one), ["a"]);
    assert_eq!(names(&whole), ["one-other/a", "one/a"]);
}

#[test]
fn the_driver_works_inside_an_async_runtime_and_can_be_dropped_there() {
    let server = BucketServer::start(Manner::Proper);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        let store = open(&server);
        store.put_new(&name("a"), b"x").expect("put");
        assert_eq!(store.get(&name("a")).expect("get"), b"x");
    });
}

#[test]
fn addresses_are_read_and_secrets_are_never_shown() {
    for text in [
        "s3://ab",
        "s3://",
        "s3:///x",
        "s3://buck et",
        "http://bucket",
        "s3://bucket/a//b",
    ] {
        assert_eq!(
            S3Options::from_url(text).expect_err(text).kind(),
            ErrorKind::Invalid,
            "{text}"
        );
    }
    let options = S3Options::from_url("s3://bucket/pre/fix/")
        .and_then(|options| options.set("aws_access_key_id", "access"))
        .and_then(|options| options.set("aws_secret_access_key", "hush"))
        .and_then(|options| options.set("aws_endpoint_url", "http://127.0.0.1:1"))
        .expect("options");
    assert_eq!(
        format!("{options:?}"),
        "s3://bucket/pre/fix/ at http://127.0.0.1:1"
    );
    let store = S3Store::open(&options).expect("open");
    assert_eq!(
        store.describe(),
        "s3://bucket/pre/fix/ at http://127.0.0.1:1"
    );
    assert!(options.set("aws_no_such_thing", "x").is_err());
}
