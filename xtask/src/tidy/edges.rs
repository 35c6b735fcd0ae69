//! Which crate may use which: the table, and what holds the code and its documentation to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Finding;

/// The layers. A new edge is a commit of its own, with its line in ARCHITECTURE.md.
const EDGES: &[(&str, &[&str])] = &[
    ("block", &[]),
    ("store", &[]),
    ("vdisk", &["block"]),
    ("guestfs", &["block"]),
    ("repo", &["block", "store"]),
    (
        "engine",
        &["block", "vdisk", "guestfs", "store", "repo", "host"],
    ),
    ("serve", &["block"]),
    ("wsman", &[]),
    ("host", &["block", "vdisk", "wsman"]),
    ("lab", &["block", "guestfs", "vdisk", "wsman"]),
    (
        "cli",
        &[
            "block", "vdisk", "guestfs", "store", "repo", "engine", "serve", "wsman", "host", "lab",
        ],
    ),
    ("hikae", &["cli"]),
    ("xtask", &[]),
];

const ARCHITECTURE: &str = "docs/ARCHITECTURE.md";

/// Crate by crate, what it uses of ours outside of tests.
#[derive(Debug)]
pub(super) struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug)]
struct Package {
    name: String,
    manifest: String,
    manifest_text: String,
    uses: BTreeSet<String>,
}

impl Metadata {
    /// Asks cargo.
    pub(super) fn of(workspace: &Path) -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args([
                "metadata",
                "--no-deps",
                "--offline",
                "--format-version",
                "1",
            ])
            .current_dir(workspace)
            .output()
            .context("start cargo metadata")?;
        ensure!(
            output.status.success(),
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let json: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
        let packages = json["packages"]
            .as_array()
            .context("packages in cargo metadata")?;
        let packages = packages
            .iter()
            .map(|package| Package::of(workspace, package))
            .collect::<Result<_>>()?;
        Ok(Self { packages })
    }

    /// Edges and manifests that are not as they should be.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for package in &self.packages {
            findings.extend(package.findings());
        }
        let found: BTreeSet<&str> = self.packages.iter().map(|p| p.name.as_str()).collect();
        for (name, _) in EDGES.iter().filter(|(name, _)| !found.contains(name)) {
            let what = format!("the table of layers has a crate that is not there: {name}");
            findings.push(Finding::new("Cargo.toml", 0, what));
        }
        findings
    }
}

impl Package {
    fn of(workspace: &Path, package: &Value) -> Result<Self> {
        let name = package["name"]
            .as_str()
            .context("a package's name")?
            .to_owned();
        let path = package["manifest_path"]
            .as_str()
            .context("a package's manifest")?;
        let manifest_text =
            std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        let relative = Path::new(path)
            .strip_prefix(workspace)
            .unwrap_or(Path::new(path));
        let dependencies = package["dependencies"].as_array().context("dependencies")?;
        let uses = dependencies
            .iter()
            // Tests may look from above and from the side.
            .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
            .filter(|dependency| dependency["path"].is_string())
            .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
            .collect();
        Ok(Self {
            name,
            manifest: relative.display().to_string(),
            manifest_text,
            uses,
        })
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut say = |what: String| findings.push(Finding::new(&self.manifest, 0, what));
        match EDGES.iter().find(|(name, _)| *name == self.name) {
            None => say(format!("{} is not in the table of layers", self.name)),
            Some((_, allowed)) => {
                for used in self
                    .uses
                    .iter()
                    .filter(|used| !allowed.contains(&used.as_str()))
                {
                    say(format!("{} may not use {used}", self.name));
                }
            }
        }
        if !has_workspace_lints(&self.manifest_text) {
            say("has no `[lints] workspace = true`".to_owned());
        }
        findings
    }
}

fn has_workspace_lints(manifest: &str) -> bool {
    let mut lines = manifest
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[lints]")
        .skip(1);
    lines.find(|line| !line.is_empty()) == Some("workspace = true")
}

/// What the table in ARCHITECTURE.md says otherwise than the code's.
pub(super) fn documented(text: &str) -> Vec<Finding> {
    let missing = || {
        vec![Finding::new(
            ARCHITECTURE,
            0,
            "has no table between `<!-- edges -->` marks",
        )]
    };
    let Some((_, behind)) = text.split_once("<!-- edges -->") else {
        return missing();
    };
    let Some((table, _)) = behind.split_once("<!-- /edges -->") else {
        return missing();
    };
    let mut said: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in table
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with('|'))
    {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let &[name, uses] = cells.as_slice() else {
            continue;
        };
        if name == "crate" || name.starts_with('-') {
            continue;
        }
        let uses = uses
            .split(',')
            .map(str::trim)
            .filter(|used| !matches!(*used, "" | "-" | "–"));
        said.insert(name.to_owned(), uses.map(str::to_owned).collect());
    }
    let meant: BTreeMap<String, BTreeSet<String>> = EDGES
        .iter()
        .map(|(name, uses)| {
            (
                (*name).to_owned(),
                uses.iter().map(|used| (*used).to_owned()).collect(),
            )
        })
        .collect();
    let names: BTreeSet<&String> = said.keys().chain(meant.keys()).collect();
    names
        .into_iter()
        .filter(|name| said.get(*name) != meant.get(*name))
        .map(|name| {
            let what = format!(
                "{name}: the document says {:?}, the code's table {:?}",
                said.get(name),
                meant.get(name)
            );
            Finding::new(ARCHITECTURE, 0, what)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, uses: &[&str]) -> Package {
        Package {
            name: name.to_owned(),
            manifest: format!("crates/{name}/Cargo.toml"),
            manifest_text: "[package]\n\n[lints]\nworkspace = true\n".to_owned(),
            uses: uses.iter().map(|used| (*used).to_owned()).collect(),
        }
    }

    #[test]
    fn an_edge_that_goes_up_is_found() {
        assert!(package("repo", &["block", "store"]).findings().is_empty());
        assert!(package("repo", &[]).findings().is_empty());
        let findings = package("repo", &["block", "engine"]).findings();
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].what, "repo may not use engine");
        assert_eq!(package("newcomer", &[]).findings().len(), 1);
    }

    #[test]
    fn a_manifest_without_the_workspace_lints_is_found() {
        let mut package = package("block", &[]);
        package.manifest_text = "[package]\n[lints]\n\n[lints.rust]\n".to_owned();
        assert_eq!(package.findings().len(), 1);
        package.manifest_text = "[package]\nworkspace = true\n".to_owned();
        assert_eq!(package.findings().len(), 1);
    }

    #[test]
    fn a_crate_of_the_table_that_is_gone_is_found() {
        let metadata = Metadata {
            packages: vec![package("block", &[])],
        };
        assert_eq!(metadata.findings().len(), EDGES.len() - 1);
    }

    #[test]
    fn a_document_that_says_otherwise_is_found() {
        let rows: Vec<String> = EDGES
            .iter()
            .map(|(name, uses)| format!("| {name} | {} |", uses.join(", ")))
            .collect();
        let text = |rows: &str| {
            format!(
                "# A\n<!-- edges -->\n| crate | may use |\n|---|---|\n{rows}\n<!-- /edges -->\n"
            )
        };
        assert_eq!(documented(&text(&rows.join("\n"))), []);
        assert_eq!(
            documented(&text(&rows[1..].join("\n"))).len(),
            1,
            "a row is missing"
        );
        let changed = rows
            .join("\n")
            .replace("| repo | block, store |", "| repo | block |");
        assert_eq!(documented(&text(&changed)).len(), 1, "a cell is another");
        assert_eq!(documented("no table").len(), 1);
    }
}
