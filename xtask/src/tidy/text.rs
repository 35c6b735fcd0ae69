//! Rules of single files: module docs, sizes, words, paths, links.

use super::Finding;

/// Longest source file in lines; about 400 is what a file should have.
const MAX_LINES: usize = 800;

/// Words that say nothing in the name of a type.
const EMPTY_WORDS: &[&str] = &["Manager", "Handler", "Helper", "Util", "Common"];

/// Names of files that hold everything and say nothing.
const EMPTY_FILES: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc"];

/// What declares a type.
const DECLARATIONS: &[&str] = &["struct ", "enum ", "trait ", "type ", "union "];

/// Texts that no line of Rust may hold, with the reason. Each is written in two parts, so as not to be found here.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    (
        "#[al",
        "low(",
        "say `#[expect(lint, reason = \"…\")]`: an expectation that no longer holds is reported",
    ),
    (
        "#![al",
        "low(",
        "say `#![expect(lint, reason = \"…\")]`: an expectation that no longer holds is reported",
    ),
    ("#[ig", "nore", "a test that does not run proves nothing"),
    ("TO", "DO", "do it, or write it where work is planned"),
    ("FIX", "ME", "mend it"),
];

/// Beginnings of paths that exist on one machine only. Each is written in two parts, so as not to be found here.
const MACHINE_PATHS: &[(&str, &str)] = &[
    ("/wo", "rk/"),
    ("/ro", "ot/"),
    ("/ho", "me/"),
    ("/Us", "ers/"),
];

/// Every rule for one file, by its path from the workspace.
pub(super) fn check(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = machine_paths(file, text);
    if file.ends_with(".rs") {
        findings.extend(module_doc(file, text));
        findings.extend(length(file, text));
        findings.extend(file_name(file));
        for (number, line) in numbered(text) {
            findings.extend(forbidden(file, number, line));
            findings.extend(type_name(file, number, line));
        }
    }
    findings
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index.saturating_add(1), line))
}

fn module_doc(file: &str, text: &str) -> Option<Finding> {
    let what = "opens without `//!`: what it is, its picture, its invariants, what it does not do";
    (!text.starts_with("//! ")).then(|| Finding::new(file, 1, what))
}

fn length(file: &str, text: &str) -> Option<Finding> {
    let is_test = file.contains("/tests/") || file.ends_with("/tests.rs");
    let lines = text.lines().count();
    (!is_test && lines > MAX_LINES).then(|| {
        Finding::new(
            file,
            0,
            format!("{lines} lines: two things live in one room"),
        )
    })
}

fn file_name(file: &str) -> Option<Finding> {
    let name = file.rsplit('/').next()?.strip_suffix(".rs")?;
    EMPTY_FILES
        .contains(&name)
        .then(|| Finding::new(file, 0, "a file's name says what is in it"))
}

fn forbidden(file: &str, number: usize, line: &str) -> Option<Finding> {
    let (_, _, why) = FORBIDDEN
        .iter()
        .find(|(head, tail, _)| line.contains(&format!("{head}{tail}")))?;
    Some(Finding::new(file, number, *why))
}

fn type_name(file: &str, number: usize, line: &str) -> Option<Finding> {
    let code = line.trim_start();
    if code.starts_with("//") {
        return None;
    }
    let declared = DECLARATIONS.iter().find_map(|keyword| {
        let (before, behind) = code.split_once(keyword)?;
        let only_visibility = before.is_empty() || before.starts_with("pub");
        only_visibility.then_some(behind)
    })?;
    let name: String = declared
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    let word = EMPTY_WORDS.iter().find(|word| name.contains(**word))?;
    Some(Finding::new(
        file,
        number,
        format!("{name}: `{word}` says nothing about what it is"),
    ))
}

fn machine_paths(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in numbered(text) {
        for (head, tail) in MACHINE_PATHS {
            let path = format!("{head}{tail}");
            // In `docs/work/plan` the same letters are no absolute path.
            let absolute = line.match_indices(&path).any(|(at, _)| {
                let before = line.get(..at).and_then(|before| before.chars().next_back());
                !before.is_some_and(|c| c.is_alphanumeric() || "._-}~/".contains(c))
            });
            if absolute {
                findings.push(Finding::new(
                    file,
                    number,
                    format!("a path of one machine: {path}…"),
                ));
            }
        }
    }
    findings
}

/// Links of a Markdown file to files that are not there.
pub(super) fn dead_links(file: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    if !file.ends_with(".md") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (number, line) in numbered(text) {
        for (at, _) in line.match_indices("](") {
            let behind = line.get(at.saturating_add(2)..).unwrap_or("");
            let Some((link, _)) = behind.split_once(')') else {
                continue;
            };
            let target = link.split('#').next().unwrap_or("");
            if !target.is_empty() && !target.contains(':') && !exists(target) {
                findings.push(Finding::new(
                    file,
                    number,
                    format!("a link to nothing: {target}"),
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<(usize, String)> {
        check(file, text)
            .into_iter()
            .map(|finding| (finding.line, finding.what))
            .collect()
    }

    #[test]
    fn a_file_that_says_what_it_is_passes() {
        let text = "//! What it is.\n\n/// A handler is mentioned here.\npub struct PackWriter;\n";
        assert_eq!(found("crates/a/src/pack.rs", text), []);
    }

    #[test]
    fn a_file_without_a_module_doc_is_found() {
        assert_eq!(found("crates/a/src/pack.rs", "use x;\n").len(), 1);
        assert_eq!(found("crates/a/src/pack.rs", "").len(), 1);
    }

    #[test]
    fn empty_names_are_found() {
        for line in [
            "pub struct PackManager;",
            "enum EventHandler {",
            "    pub(crate) trait ReadHelper: Sized {",
            "pub type FsUtil = u8;",
        ] {
            let findings = found("crates/a/src/pack.rs", &format!("//! Doc.\n{line}\n"));
            assert_eq!(findings.len(), 1, "{line}");
            assert_eq!(findings[0].0, 2);
        }
        assert_eq!(found("crates/a/src/utils.rs", "//! Doc.\n").len(), 1);
        assert_eq!(
            found(
                "crates/a/src/pack.rs",
                "//! Doc.\nlet destruct Manager = 1;\n"
            ),
            []
        );
    }

    #[test]
    fn forbidden_texts_are_found() {
        for (head, tail, _) in FORBIDDEN {
            let text = format!("//! Doc.\n{head}{tail}x)]\n");
            assert_eq!(
                found("crates/a/src/pack.rs", &text).len(),
                1,
                "{head}{tail}"
            );
            assert_eq!(found("docs/plan.md", &text), [], "only Rust is read for it");
        }
    }

    #[test]
    fn long_files_are_found_and_long_tests_are_not() {
        let text = format!("//! Doc.\n{}", "x\n".repeat(MAX_LINES));
        assert_eq!(found("crates/a/src/pack.rs", &text).len(), 1);
        assert_eq!(found("crates/a/tests/it/pack.rs", &text), []);
    }

    #[test]
    fn paths_of_one_machine_are_found_in_every_kind_of_file() {
        for (head, tail) in MACHINE_PATHS {
            let path = format!("{head}{tail}");
            assert_eq!(
                found("README.md", &format!("cd {path}x\n")).len(),
                1,
                "{path}"
            );
            assert_eq!(
                found("a/b.toml", &format!("x = \"{path}x\"\n")).len(),
                1,
                "{path}"
            );
            assert_eq!(
                found("README.md", &format!("see docs{path}x\n")),
                [],
                "{path}"
            );
        }
    }

    #[test]
    fn links_to_nothing_are_found() {
        let text = "[a](there.md) [b](gone.md#part) [c](https://x/gone.md) [d](#part)\n[e](gone/)";
        let dead = dead_links("docs/a.md", text, |link| link == "there.md");
        let dead: Vec<_> = dead
            .into_iter()
            .map(|finding| (finding.line, finding.what))
            .collect();
        let expected = [
            (1, "a link to nothing: gone.md"),
            (2, "a link to nothing: gone/"),
        ];
        assert_eq!(dead, expected.map(|(line, what)| (line, what.to_owned())));
    }
}
