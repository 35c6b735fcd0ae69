//! `cargo xtask tidy`: rules of the source text that no compiler knows.
//!
//! ```text
//!   every text file ──► text rules ─────┐
//!   all Rust files ───► module rules ───┤
//!   cargo metadata ──► layer edges ─────┼──► findings, each with file, line, rule
//!   manifests, ARCHITECTURE.md ─────────┘
//! ```
//!
//! A rule is a pure function from text to findings, and has a test with a text that breaks it.

mod edges;
mod modules;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

/// Folders that hold nothing of ours.
const SKIPPED_FOLDERS: &[&str] = &["target", ".git", "__pycache__", "node_modules"];

/// Endings of files that people write.
const TEXT_ENDINGS: &[&str] = &["rs", "md", "toml", "py", "sh", "txt", "yml", "yaml"];

/// One broken rule at one place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    file: String,
    /// From 1; 0 for the file as a whole.
    line: usize,
    what: String,
}

impl Finding {
    fn new(file: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.what),
            line => write!(f, "{}:{line}: {}", self.file, self.what),
        }
    }
}

/// Prints what is not tidy.
pub(crate) fn run(workspace: &Path) -> Result<ExitCode> {
    let findings = findings(workspace)?;
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        println!("tidy");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} findings", findings.len());
    Ok(ExitCode::FAILURE)
}

/// Everything that is not tidy, in the order of files.
pub(crate) fn findings(workspace: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut files = Vec::new();
    let mut sources = BTreeMap::new();
    collect(workspace, workspace, &mut files)?;
    for (name, path) in &files {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {name}"))?;
        findings.extend(text::check(name, &text));
        findings.extend(text::dead_links(name, &text, |link| {
            path.parent()
                .is_some_and(|folder| folder.join(link).exists())
        }));
        if name.ends_with(".rs") {
            sources.insert(name.clone(), text);
        }
    }
    findings.extend(modules::check(&sources));
    let metadata = edges::Metadata::of(workspace)?;
    findings.extend(metadata.findings());
    findings.extend(edges::documented(&read(workspace, "docs/ARCHITECTURE.md")?));
    findings.extend(changelog(&read(workspace, "CHANGELOG.md")?));
    findings.sort();
    Ok(findings)
}

fn read(workspace: &Path, name: &str) -> Result<String> {
    std::fs::read_to_string(workspace.join(name)).with_context(|| format!("read {name}"))
}

fn collect(workspace: &Path, folder: &Path, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        let path = entry.path();
        let name = entry.file_name();
        let file_type = entry.file_type()?;
        if file_type.is_dir() {
            if !SKIPPED_FOLDERS.iter().any(|skipped| name == *skipped) {
                collect(workspace, &path, files)?;
            }
            continue;
        }
        let ending = path
            .extension()
            .and_then(|ending| ending.to_str())
            .unwrap_or("");
        if file_type.is_file() && TEXT_ENDINGS.contains(&ending) {
            let relative = path.strip_prefix(workspace).unwrap_or(&path);
            files.push((relative.to_string_lossy().into_owned(), path.clone()));
        }
    }
    Ok(())
}

/// The changelog has a part for what is not released yet.
fn changelog(text: &str) -> Vec<Finding> {
    if text.lines().any(|line| line.starts_with("## ")) {
        return Vec::new();
    }
    vec![Finding::new(
        "CHANGELOG.md",
        0,
        "has no part: one begins with `## `",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let workspace = crate::workspace().expect("workspace");
        let findings = findings(&workspace).expect("read the workspace");
        let shown: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "\n{}", shown.join("\n"));
    }

    #[test]
    fn a_changelog_without_parts_is_found() {
        assert!(changelog("# Changelog\n\n## Unreleased\n").is_empty());
        assert_eq!(changelog("# Changelog\n").len(), 1);
    }
}
