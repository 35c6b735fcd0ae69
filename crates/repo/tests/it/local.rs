//! Local files: sealed, whole or not there, shared between runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use repo::local::FolderUse;
use repo::{
    CreateOptions, Encryption, Environment, ErrorKind, OpenOptions, ProtectedName, Repository,
};
use store::memory::MemoryStore;

fn made(encryption: Encryption, cache: Option<&Path>) -> Repository {
    let options = CreateOptions {
        encryption,
        ..CreateOptions::default()
    };
    let open = OpenOptions {
        cache_dir: cache.map(Path::to_owned),
        ..OpenOptions::default()
    };
    let environment = Environment::system("tests of local files");
    let store = Arc::new(MemoryStore::new());
    let created = Repository::create(store, &options, &open, &environment).expect("as it was made");
    created.repository
}

fn name() -> ProtectedName {
    ProtectedName::new("vm").expect("as it was made")
}

/// Every file below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("as it was made") {
        let path = entry.expect("as it was made").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[test]
fn frames_come_back_and_tell_nothing_to_whoever_has_the_cache_alone() {
    let cache = tempfile::tempdir().expect("as it was made");
    let repository = made(Encryption::Aes256Gcm, Some(cache.path()));
    let secret = b"a very secret name ".repeat(40);
    let id = {
        let folder = repository
            .local_folder("names", &name())
            .expect("as it was made");
        assert!(folder.is_kept());
        let mut writer = folder.create().expect("as it was made");
        assert_eq!(writer.frame(&secret).expect("as it was made"), 0);
        assert_eq!(writer.frame(b"").expect("as it was made"), 1);
        // Nothing is visible before its end.
        assert_eq!(folder.files().expect("as it was made"), []);
        writer.finish().expect("as it was made")
    };
    let folder = repository
        .local_folder("names", &name())
        .expect("as it was made");
    assert_eq!(
        folder.files().expect("as it was made"),
        std::slice::from_ref(&id)
    );
    let reader = folder.open(&id).expect("as it was made");
    assert_eq!(reader.frame_count(), 2);
    assert_eq!(reader.frame(0).expect("as it was made"), secret);
    assert_eq!(reader.frame(1).expect("as it was made"), b"");
    assert_eq!(reader.frame(2).unwrap_err().kind(), ErrorKind::Local);
    for file in files_below(cache.path()) {
        let bytes = fs::read(&file).expect("as it was made");
        assert!(!bytes.windows(6).any(|part| part == b"secret"), "{file:?}");
        assert!(!file.display().to_string().contains("/vm"));
    }
    // Another repository's key opens nothing.
    let other = tempfile::tempdir().expect("as it was made");
    let stranger = made(Encryption::Aes256Gcm, Some(other.path()));
    let theirs = stranger
        .local_folder("names", &name())
        .expect("as it was made");
    let from = files_below(cache.path());
    let from = from
        .iter()
        .find(|path| path.extension().is_some())
        .expect("as it was made");
    let to = files_below(other.path()).pop().expect("as it was made");
    fs::copy(
        from,
        to.with_file_name(from.file_name().expect("as it was made")),
    )
    .expect("as it was made");
    assert!(
        theirs
            .open(&theirs.files().expect("as it was made")[0])
            .is_err()
    );
}

#[test]
fn no_damage_gives_a_wrong_byte() {
    let cache = tempfile::tempdir().expect("as it was made");
    let repository = made(Encryption::None, Some(cache.path()));
    let folder = repository
        .local_folder("names", &name())
        .expect("as it was made");
    let mut writer = folder.create().expect("as it was made");
    writer.frame(b"one").expect("as it was made");
    writer.frame(b"two").expect("as it was made");
    let id = writer.finish().expect("as it was made");
    let path = files_below(cache.path());
    let path = path
        .iter()
        .find(|path| path.extension().is_some())
        .expect("as it was made");
    let whole = fs::read(path).expect("as it was made");
    let expect_refused = |bytes: &[u8], what: &str| {
        fs::write(path, bytes).expect("as it was made");
        if let Ok(reader) = folder.open(&id) {
            let frames = [reader.frame(0), reader.frame(1)];
            assert!(frames.iter().any(Result::is_err), "{what}");
            for (frame, expected) in frames.into_iter().zip([b"one", b"two"]) {
                if let Ok(bytes) = frame {
                    assert_eq!(bytes, expected, "{what}");
                }
            }
        }
    };
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        expect_refused(&bytes, &format!("byte {at}"));
        expect_refused(&whole[..at], &format!("cut at {at}"));
    }
    fs::write(path, &whole).expect("as it was made");
    assert_eq!(
        folder
            .open(&id)
            .expect("as it was made")
            .frame(1)
            .expect("as it was made"),
        b"two"
    );
}

#[test]
fn who_is_alone_tidies_up_and_who_is_not_leaves_all_as_it_is() {
    let cache = tempfile::tempdir().expect("as it was made");
    let repository = made(Encryption::Aes256Gcm, Some(cache.path()));
    let mut first = repository
        .local_folder("names", &name())
        .expect("as it was made");
    assert_eq!(first.held(), FolderUse::Alone);
    first.share().expect("as it was made");
    let left_over = files_below(cache.path()).pop().expect("as it was made");
    let left_over = left_over.with_file_name("tmp-left-over");
    fs::write(&left_over, b"half").expect("as it was made");
    let second = repository
        .local_folder("names", &name())
        .expect("as it was made");
    assert_eq!(second.held(), FolderUse::Shared);
    assert!(left_over.exists(), "somebody may be writing it");
    drop((first, second));
    let alone = repository
        .local_folder("names", &name())
        .expect("as it was made");
    assert_eq!(alone.held(), FolderUse::Alone);
    assert!(!left_over.exists());
    // Where nothing can be kept, a folder is there for as long as it is used.
    let temporary = made(Encryption::None, None);
    let folder = temporary
        .local_folder("names", &name())
        .expect("as it was made");
    assert!(!folder.is_kept());
    let mut writer = folder.create().expect("as it was made");
    writer.frame(b"now").expect("as it was made");
    let id = writer.finish().expect("as it was made");
    assert_eq!(
        folder
            .open(&id)
            .expect("as it was made")
            .frame(0)
            .expect("as it was made"),
        b"now"
    );
}
