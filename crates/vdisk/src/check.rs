//! What a check found in an image, and how far a repair may go: the same words for every format.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

use std::fmt;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Harmless: wasted space, an odd but legal value.
    Note,
    /// Wrong, and a repair puts it right without touching a byte of the disk.
    Repairable,
    /// Bytes of the disk are lost or in doubt.
    Damage,
}

/// One thing that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where in the file, when it is at one place.
    pub offset: Option<u64>,
    /// What is wrong: a lower-case fragment that names the structure.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "at {offset}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// The most findings that are listed; the rest are counted.
pub const MAX_FINDINGS: usize = 1000;

/// Everything that a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The findings in the order in which they were met, at most [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// Findings beyond those listed.
    pub unlisted: u64,
    /// The worst of all, listed or not.
    pub worst: Option<Severity>,
}

impl CheckReport {
    /// Adds a finding.
    pub fn add(&mut self, severity: Severity, offset: Option<u64>, text: impl Into<String>) {
        self.worst = self.worst.max(Some(severity));
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding {
                severity,
                offset,
                text: text.into(),
            });
        } else {
            self.unlisted = self.unlisted.saturating_add(1);
        }
    }

    /// Whether nothing is wrong: notes are allowed.
    pub fn is_clean(&self) -> bool {
        self.worst.is_none_or(|worst| worst == Severity::Note)
    }
}

/// How far a repair may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RepairMode {
    /// Only what changes no byte of the disk.
    #[default]
    Lossless,
    /// Also giving up what cannot be true, such as blocks behind the end of the file.
    DataLoss,
}
