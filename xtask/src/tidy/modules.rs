//! Rules of files among each other: each belongs to a module tree, and a crate has one test binary.
//!
//! A file that no `mod` names is never compiled: it looks like code, and like a test that passes.

use std::collections::BTreeMap;

use super::Finding;

/// Files that are roots of a module tree.
const ROOTS: &[&str] = &["lib.rs", "main.rs", "build.rs"];

/// Folders of a crate in which every file is a root.
const ROOT_FOLDERS: &[&str] = &["/examples", "/benches", "/bin", "/fuzz_targets"];

/// Checks all Rust files, by their path from the workspace.
pub(super) fn check(sources: &BTreeMap<String, String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in sources.keys() {
        let Some((folder, name)) = file.rsplit_once('/') else {
            continue;
        };
        if folder.ends_with("/tests") && folder.split('/').count() == 3 {
            let what = "a test binary of its own: tests are modules of tests/it/main.rs";
            findings.push(Finding::new(file, 0, what));
        } else if !is_root(folder, name) && !is_named(folder, name, sources) {
            findings.push(Finding::new(
                file,
                0,
                "no `mod` names it, so it is never compiled",
            ));
        }
    }
    findings
}

fn is_root(folder: &str, name: &str) -> bool {
    ROOTS.contains(&name) || ROOT_FOLDERS.iter().any(|root| folder.ends_with(root))
}

/// Whether the module above names this file: by its name, or in a `path` attribute.
fn is_named(folder: &str, name: &str, sources: &BTreeMap<String, String>) -> bool {
    // The folder itself is the module of a `mod.rs`.
    let (folder, module) = match (name, folder.rsplit_once('/')) {
        ("mod.rs", Some((above, module))) => (above, module),
        _ => (folder, name.strip_suffix(".rs").unwrap_or(name)),
    };
    let path = format!("/{name}\"");
    let above = ["lib.rs", "main.rs", "mod.rs"]
        .map(|file| format!("{folder}/{file}"))
        .into_iter()
        .chain([format!("{folder}.rs")]);
    above.filter_map(|file| sources.get(&file)).any(|text| {
        text.lines().any(|line| {
            let line = line.trim();
            if line.starts_with("#[") && line.contains("path = ") && line.contains(&path) {
                return true;
            }
            let declared = line
                .strip_suffix(';')
                .and_then(|line| line.rsplit_once("mod "));
            declared.is_some_and(|(before, named)| {
                named == module && (before.is_empty() || before.starts_with("pub"))
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources = files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        check(&sources)
            .into_iter()
            .map(|finding| finding.file)
            .collect()
    }

    #[test]
    fn files_that_modules_name_pass() {
        let files = [
            (
                "crates/a/src/lib.rs",
                "//! A.\nmod pack;\n#[cfg(unix)]\npub mod file;\n",
            ),
            (
                "crates/a/src/pack.rs",
                "//! P.\n    pub(crate) mod reader;\n",
            ),
            ("crates/a/src/pack/reader.rs", "//! R.\n"),
            ("crates/a/src/file.rs", "//! F.\n"),
            ("crates/a/tests/it/main.rs", "//! T.\nmod pack;\n"),
            ("crates/a/tests/it/pack.rs", "//! T.\n"),
        ];
        assert!(found(&files).is_empty(), "{:?}", found(&files));
    }

    #[test]
    fn files_that_no_module_names_are_found() {
        let files = [
            ("crates/a/src/lib.rs", "//! A.\n// mod pack;\nmod packs;\n"),
            ("crates/a/src/pack.rs", "//! P.\n"),
            ("crates/a/src/packs/reader.rs", "//! R.\n"),
        ];
        assert_eq!(
            found(&files),
            ["crates/a/src/pack.rs", "crates/a/src/packs/reader.rs"]
        );
    }

    #[test]
    fn a_module_may_lie_in_a_folder_or_at_a_path() {
        let files = [
            ("crates/a/src/lib.rs", "mod pack;\nmod file;\n"),
            ("crates/a/src/pack/mod.rs", "mod reader;\n"),
            ("crates/a/src/pack/reader.rs", ""),
            (
                "crates/a/src/file.rs",
                "#[cfg_attr(unix, path = \"file/unix.rs\")]\nmod platform;\n",
            ),
            ("crates/a/src/file/unix.rs", ""),
            ("crates/a/examples/show.rs", ""),
        ];
        assert!(found(&files).is_empty(), "{:?}", found(&files));
    }

    #[test]
    fn a_second_test_binary_is_found() {
        assert_eq!(
            found(&[("crates/a/tests/pack.rs", "")]),
            ["crates/a/tests/pack.rs"]
        );
    }
}
