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
    let created = Repository::create(store, &options, &open, &environment).unwrap();
    created.repository
}

fn name() -> ProtectedName {
    ProtectedName::new("vm").unwrap()
}

/// Every file below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
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
    let cache = tempfile::tempdir().unwrap();
    let repository = made(Encryption::Aes256Gcm, Some(cache.path()));
    let secret = b"a very secret name ".repeat(40);
    let id = {
        let folder = repository.local_folder("names", &name()).unwrap();
        assert!(folder.is_kept());
        let mut writer = folder.create().unwrap();
        assert_eq!(writer.frame(&secret).unwrap(), 0);
        assert_eq!(writer.frame(b"").unwrap(), 1);
        // Nothing is visible before its end.
        assert_eq!(folder.files().unwrap(), []);
        writer.finish().unwrap()
    };
    let folder = repository.local_folder("names", &name()).unwrap();
    assert_eq!(folder.files().unwrap(), [id.clone()]);
    let reader = folder.open(&id).unwrap();
    assert_eq!(reader.frame_count(), 2);
    assert_eq!(reader.frame(0).unwrap(), secret);
    assert_eq!(reader.frame(1).unwrap(), b"");
    assert_eq!(reader.frame(2).unwrap_err().kind(), ErrorKind::Local);
    for file in files_below(cache.path()) {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(6).any(|part| part == b"secret"), "{file:?}");
        assert!(!file.display().to_string().contains("/vm"));
    }
    // Another repository's key opens nothing.
    let other = tempfile::tempdir().unwrap();
    let stranger = made(Encryption::Aes256Gcm, Some(other.path()));
    let theirs = stranger.local_folder("names", &name()).unwrap();
    let from = files_below(cache.path());
    let from = from.iter().find(|path| path.extension().is_some()).unwrap();
    let to = files_below(other.path()).pop().unwrap();
    fs::copy(from, to.with_file_name(from.file_name().unwrap())).unwrap();
    assert!(theirs.open(&theirs.files().unwrap()[0]).is_err());
}

#[test]
fn no_damage_gives_a_wrong_byte() {
    let cache = tempfile::tempdir().unwrap();
    let repository = made(Encryption::None, Some(cache.path()));
    let folder = repository.local_folder("names", &name()).unwrap();
    let mut writer = folder.create().unwrap();
    writer.frame(b"one").unwrap();
    writer.frame(b"two").unwrap();
    let id = writer.finish().unwrap();
    let path = files_below(cache.path());
    let path = path.iter().find(|path| path.extension().is_some()).unwrap();
    let whole = fs::read(path).unwrap();
    let expect_refused = |bytes: &[u8], what: &str| {
        fs::write(path, bytes).unwrap();
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
    fs::write(path, &whole).unwrap();
    assert_eq!(folder.open(&id).unwrap().frame(1).unwrap(), b"two");
}

#[test]
fn who_is_alone_tidies_up_and_who_is_not_leaves_all_as_it_is() {
    let cache = tempfile::tempdir().unwrap();
    let repository = made(Encryption::Aes256Gcm, Some(cache.path()));
    let mut first = repository.local_folder("names", &name()).unwrap();
    assert_eq!(first.held(), FolderUse::Alone);
    first.share().unwrap();
    let left_over = files_below(cache.path()).pop().unwrap();
    let left_over = left_over.with_file_name("tmp-left-over");
    fs::write(&left_over, b"half").unwrap();
    let second = repository.local_folder("names", &name()).unwrap();
    assert_eq!(second.held(), FolderUse::Shared);
    assert!(left_over.exists(), "somebody may be writing it");
    drop((first, second));
    let alone = repository.local_folder("names", &name()).unwrap();
    assert_eq!(alone.held(), FolderUse::Alone);
    assert!(!left_over.exists());
    // Where nothing can be kept, a folder is there for as long as it is used.
    let temporary = made(Encryption::None, None);
    let folder = temporary.local_folder("names", &name()).unwrap();
    assert!(!folder.is_kept());
    let mut writer = folder.create().unwrap();
    writer.frame(b"now").unwrap();
    let id = writer.finish().unwrap();
    assert_eq!(folder.open(&id).unwrap().frame(0).unwrap(), b"now");
}
