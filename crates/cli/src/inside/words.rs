//! Paths as people read them and as they can be typed again.

use crate::args::RepoArgs;

/// A text in which nothing moves the cursor: control characters are shown by their codes.
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// A word as a shell takes it.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A path on a volume as it is typed. What no terminal can type becomes `?`, which stands for any character.
pub fn typed(volume: impl std::fmt::Display, path: &str) -> String {
    let typable = |c: char| {
        if c.is_control() || c == char::REPLACEMENT_CHARACTER {
            '?'
        } else {
            c
        }
    };
    let path: String = path.chars().map(typable).collect();
    format!("{volume}:{path}")
}

/// The command that does `verb` with paths of a version, on the repository that was named as it was opened.
pub fn command(verb: &str, repo: &RepoArgs, version: &str, paths: &[String]) -> String {
    let mut words = vec!["hikae disk".to_owned(), verb.to_owned()];
    words.extend(["--repo".to_owned(), quoted(&repo.repo)]);
    let unlock = &repo.unlock;
    for (flag, file) in [
        ("--key-file", &unlock.key_file),
        ("--passphrase-file", &unlock.passphrase_file),
        ("--recovery-key-file", &unlock.recovery_key_file),
    ] {
        if let Some(file) = file {
            words.extend([flag.to_owned(), quoted(&file.display().to_string())]);
        }
    }
    words.push(quoted(version));
    words.extend(paths.iter().map(|path| quoted(path)));
    words.join(" ")
}

/// The command that brings paths of a version back.
pub fn extract_command(repo: &RepoArgs, version: &str, paths: &[String]) -> String {
    format!("{} --to DIR", command("extract", repo, version, paths))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_pasted_and_moves_no_cursor() {
        assert_eq!(quoted("/etc/fstab"), "/etc/fstab");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("*"), "'*'");
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(typed(2, "/a\nb\u{fffd}"), "2:/a?b?");
    }
}
