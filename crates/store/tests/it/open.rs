//! From an address to a store.

use store::{ErrorKind, Store, create_url, open_url};

use crate::name;

#[test]
fn directories_are_opened_by_path_and_by_file_address() {
    let place = tempfile::tempdir().expect("temporary directory");
    let path = place
        .path()
        .join("store")
        .to_str()
        .expect("utf-8")
        .to_owned();
    assert_eq!(
        open_url(&path).err().expect("missing").kind(),
        ErrorKind::NotFound
    );
    create_url(&path)
        .expect("create")
        .put_new(&name("a"), b"x")
        .expect("put");
    for address in [path.clone(), format!("file://{path}")] {
        let store = open_url(&address).expect("open");
        assert_eq!(store.get(&name("a")).expect("get"), b"x");
        assert_eq!(store.describe(), format!("directory {path}"));
    }
}

#[test]
fn addresses_without_sense_are_refused() {
    for text in [
        "",
        "file://relative",
        "file:///a%20b",
        "ftp://host/x",
        "s3://x",
        "http://host",
    ] {
        let error = open_url(text).err().expect(text);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
    }
    open_url("memory:")
        .expect("memory")
        .put_new(&name("a"), b"")
        .expect("put");
}
