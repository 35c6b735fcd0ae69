//! A failure as an operator sees it: a stable code, what happened, the probable cause with its evidence, the next command.
//!
//! | codes | area |
//! |---|---|
//! | `HK-10nn` | the repository and its store |
//! | `HK-20nn` | images |
//! | `HK-30nn` | jobs |
//! | `HK-40nn` | hosts |
//! | `HK-90nn` | the command line, and anything that no rule knows |
//!
//! A code never changes its meaning and is never used again. The evidence is the chain of errors as it came.

use std::error::Error as StdError;
use std::fmt;

use serde::Serialize;

use crate::{Error, ErrorKind};

/// Stable name of a kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct ProblemCode(&'static str);

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A failure, explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Stable code.
    pub code: ProblemCode,
    /// What happened, one sentence.
    pub summary: String,
    /// What probably led to it.
    pub cause: String,
    /// The errors below, outermost first, as they came.
    pub evidence: Vec<String>,
    /// What to do or type next.
    pub action: String,
}

/// Code, summary, cause, action.
type Rule = (&'static str, &'static str, &'static str, &'static str);

#[expect(clippy::too_many_lines, reason = "a table: one row for each kind")]
fn repository_rule(kind: repo::ErrorKind) -> Rule {
    use repo::ErrorKind as Kind;
    match kind {
        Kind::Full => (
            "HK-1001",
            "The store has no room left.",
            "Its disk or quota is full. Nothing that was committed is affected.",
            "Make room, or free what no point needs: hikae repo gc REPO",
        ),
        Kind::Denied => (
            "HK-1014",
            "The store does not allow this.",
            "It is mounted read-only, or the account or key in use may only read.",
            "Give the account the right to write there. Reading verbs (verify without --mark, restore, check, diff, list) need none",
        ),
        Kind::NotFound => (
            "HK-1002",
            "Something that was named is not in the repository.",
            "The name, version or id is misspelt, was forgotten and freed, or this is another repository.",
            "See what is there: hikae disk list --repo REPO",
        ),
        Kind::AlreadyExists | Kind::Conflict => (
            "HK-1003",
            "The name is taken.",
            "A repository is there already, or another writer committed first.",
            "See what is there: hikae disk list --repo REPO; a backup can simply be run again",
        ),
        Kind::Corrupt => (
            "HK-1004",
            "Something stored is not what was written.",
            "The store lost or changed bytes, or an object was put in another's place.",
            "See what is hit: hikae repo verify REPO; then heal it: hikae repo repair REPO --from OTHER (or --from-image IMAGE)",
        ),
        Kind::Unsupported => (
            "HK-1005",
            "The repository uses something that this program does not know.",
            "It was written by a newer version.",
            "Use the version that wrote it, or a newer one",
        ),
        Kind::WrongKey => (
            "HK-1006",
            "The key opens nothing here.",
            "It belongs to another repository, or its slot was removed.",
            "Give the right one with --key-file, --passphrase-file or --recovery-key-file",
        ),
        Kind::Busy => (
            "HK-1007",
            "Another operation holds what is needed.",
            "A backup of the same name, or another gc, is running or was stopped a moment ago.",
            "See who: hikae repo lease list REPO; try again later",
        ),
        Kind::Fenced => (
            "HK-1008",
            "This writer was declared dead and can no longer commit.",
            "It showed no sign of life for longer than gc waits, or an operator broke its lease.",
            "Run the same command again: what it stored and gc left is used again",
        ),
        Kind::Refused => (
            "HK-1009",
            "Refused for safety.",
            "The step would lose something that a rule protects; the evidence names it.",
            "Read the evidence; change the request or the policy",
        ),
        Kind::Invalid => (
            "HK-1010",
            "What was asked of the repository makes no sense.",
            "A name, a selector or an option is malformed.",
            "See the command's --help",
        ),
        Kind::Cancelled => (
            "HK-3001",
            "The job was told to stop.",
            "",
            "Run it again: it goes on where it stopped",
        ),
        Kind::Local => (
            "HK-1011",
            "The local index cache cannot be used.",
            "Its folder is full, read-only or damaged. The repository is not affected.",
            "Give another folder with --cache-dir",
        ),
        _ => (
            "HK-1012",
            "The store did not answer as it should.",
            "A network, permission or disk fault between here and the store.",
            "Try the store: hikae repo check-store STORE; then run the command again",
        ),
    }
}

fn store_rule(kind: store::ErrorKind) -> Rule {
    use store::ErrorKind as Kind;
    match kind {
        Kind::NotFound => (
            "HK-1013",
            "There is no store at this place.",
            "The path or address is misspelt, not mounted, or the repository was never made.",
            "Look at the place; make a new repository with: hikae repo init REPO",
        ),
        Kind::Full => repository_rule(repo::ErrorKind::Full),
        Kind::Denied => repository_rule(repo::ErrorKind::Denied),
        Kind::AlreadyExists => repository_rule(repo::ErrorKind::AlreadyExists),
        Kind::Cancelled => repository_rule(repo::ErrorKind::Cancelled),
        Kind::Invalid => repository_rule(repo::ErrorKind::Invalid),
        _ => repository_rule(repo::ErrorKind::Store),
    }
}

fn image_rule(kind: vdisk::ErrorKind) -> Rule {
    use vdisk::ErrorKind as Kind;
    match kind {
        Kind::Corrupt => (
            "HK-2001",
            "The image contradicts its own format.",
            "It was cut short, damaged, or written by something that breaks the rules.",
            "See all that is wrong: hikae image check IMAGE; mend what can be mended: hikae image check IMAGE --repair",
        ),
        Kind::Unsupported => (
            "HK-2002",
            "The image uses something that is not supported.",
            "The evidence names the feature.",
            "Convert it with the tool that wrote it",
        ),
        Kind::Incomplete => (
            "HK-2003",
            "The image is not whole.",
            "Its creation was interrupted, the file was cut short, or what looks like its end was left by something else.",
            "Take another copy, or restore again; if it is a plain disk all the same: --format raw",
        ),
        Kind::ParentNotFound => (
            "HK-2004",
            "A parent of the image was not found.",
            "It lies elsewhere than the image says.",
            "Say where it is: --parent-map NAME=FILE, or --follow-absolute-parents for images of your own",
        ),
        Kind::ParentMismatch => (
            "HK-2005",
            "A parent was found, but it is not the one that the child was made on.",
            "It was changed or replaced after the child was made.",
            "Find the right file and name it with --parent-map NAME=FILE",
        ),
        Kind::AlreadyExists => (
            "HK-2006",
            "The target is there already.",
            "Nothing was said about replacing it.",
            "Give another name, or --overwrite",
        ),
        Kind::Invalid | Kind::OutOfRange | Kind::ReadOnly => (
            "HK-2007",
            "What was asked of the image makes no sense.",
            "A size, block size or range is not possible in this format.",
            "See the command's --help",
        ),
        _ => (
            "HK-2008",
            "The image could not be read or written.",
            "The file is missing or not permitted, or the disk below failed.",
            "Look at the path and its permissions, then run the command again",
        ),
    }
}

/// What lies inside a disk has a rule of its own where a job's would point elsewhere.
fn inside_rule(kind: guestfs::ErrorKind) -> Option<Rule> {
    (kind == guestfs::ErrorKind::Locked).then_some((
        "HK-3010",
        "An encrypted volume stays locked.",
        "No key was given, or none that opens it; the evidence says which kinds of keys it takes.",
        "Give one with --unlock-passphrase-file, --unlock-key-file or --unlock-recovery-key-file",
    ))
}

fn host_rule(kind: ErrorKind) -> Option<Rule> {
    match kind {
        ErrorKind::Unreachable => Some((
            "HK-4001",
            "A host does not answer.",
            "It is down, its address is another one, WS-Management does not listen, or something between closes the port.",
            "Try it step by step: hikae host check",
        )),
        ErrorKind::Denied => Some((
            "HK-4002",
            "A host does not let this account do this.",
            "Name or password are wrong, or the account lacks the right.",
            "Try it step by step: hikae host check",
        )),
        ErrorKind::HostFailed => Some((
            "HK-4003",
            "A host tried, and failed.",
            "The evidence has its own words and its number for it.",
            "Look at the host's event log (Hyper-V-VMMS), then run the command again",
        )),
        _ => None,
    }
}

fn job_rule(kind: ErrorKind) -> Rule {
    match kind {
        ErrorKind::Full => (
            "HK-3002",
            "There is not enough room for what was asked.",
            "The target's file system is smaller than what would be written.",
            "Make room, or restore somewhere else",
        ),
        ErrorKind::AlreadyExists => (
            "HK-3003",
            "The target is there already.",
            "Nothing was said about replacing it.",
            "Give another name, --overwrite, or --in-place to write only what differs",
        ),
        ErrorKind::NotFound => (
            "HK-3004",
            "Something that was named is not there.",
            "A path, name or version is misspelt or gone.",
            "See the versions: hikae disk list --repo REPO",
        ),
        ErrorKind::Corrupt => (
            "HK-3005",
            "Bytes are not what they should be.",
            "The evidence names the place.",
            "hikae repo verify REPO, hikae image check IMAGE",
        ),
        ErrorKind::Cancelled => (
            "HK-3001",
            "The job was told to stop.",
            "",
            "Run it again: it goes on where it stopped",
        ),
        ErrorKind::Invalid | ErrorKind::Unsupported => (
            "HK-3006",
            "What was asked is not possible.",
            "The evidence says why.",
            "See the command's --help",
        ),
        ErrorKind::Refused => (
            "HK-3007",
            "Refused for safety.",
            "The evidence says what would be lost.",
            "Read the evidence, then change the request",
        ),
        ErrorKind::WrongKey => repository_rule(repo::ErrorKind::WrongKey),
        ErrorKind::Busy => (
            "HK-3011",
            "Somebody else uses what is needed.",
            "Another command is at work there; the evidence names the place.",
            "Wait for it, end it, or give another place",
        ),
        ErrorKind::Fenced => repository_rule(repo::ErrorKind::Fenced),
        _ => (
            "HK-3008",
            "Something could not be read or written.",
            "A disk, file or network fault; the evidence names it.",
            "Look at the place that the evidence names, then run the command again",
        ),
    }
}

/// Whether the code only says that reading or writing failed.
fn is_plain_io(code: &str) -> bool {
    matches!(code, "HK-2008" | "HK-3008")
}

/// What a failure below says when it is about room.
fn no_room(error: &(dyn StdError + 'static)) -> Option<Rule> {
    let mut next = Some(error);
    while let Some(at) = next {
        let kind = at
            .downcast_ref::<std::io::Error>()
            .map(std::io::Error::kind);
        match kind {
            Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) => {
                return Some(job_rule(ErrorKind::Full));
            }
            Some(std::io::ErrorKind::FileTooLarge) => {
                return Some((
                    "HK-3009",
                    "The target's file system cannot hold a file of this size.",
                    "Every file system has a largest file size; ext4's is 16 TiB.",
                    "Choose a format that takes only what is used (--format vhdx or qcow2), or another file system such as XFS",
                ));
            }
            _ => next = at.source(),
        }
    }
    None
}

impl Problem {
    /// For a command line that was not understood.
    pub fn misunderstood(text: &str) -> Self {
        Self {
            code: ProblemCode("HK-9002"),
            summary: "The command line was not understood.".to_owned(),
            cause: "A word is misspelt, missing or contradicts another.".to_owned(),
            evidence: vec![text.trim_end().to_owned()],
            action: "See the command's --help".to_owned(),
        }
    }

    /// Explains an error and everything below it: the deepest error that a rule knows decides.
    pub fn of(error: &(dyn StdError + 'static)) -> Self {
        let mut evidence = Vec::new();
        let mut rule = None;
        let mut advice = None;
        let mut next = Some(error);
        while let Some(at) = next {
            evidence.push(at.to_string());
            advice = advice.or(at.downcast_ref::<Error>().and_then(Error::advice));
            if let Some(below) = at.downcast_ref::<repo::Error>() {
                rule = Some(repository_rule(below.kind()));
            } else if let Some(below) = at.downcast_ref::<vdisk::Error>() {
                rule = Some(image_rule(below.kind()));
            } else if let Some(below) = at
                .downcast_ref::<guestfs::Error>()
                .and_then(|below| inside_rule(below.kind()))
            {
                rule = Some(below);
            } else if rule.is_none() {
                rule = at
                    .downcast_ref::<Error>()
                    .map(|below| host_rule(below.kind()).unwrap_or_else(|| job_rule(below.kind())))
                    .or_else(|| {
                        at.downcast_ref::<store::Error>()
                            .map(|below| store_rule(below.kind()))
                    })
                    .or_else(|| {
                        at.downcast_ref::<std::io::Error>()
                            .map(|_| job_rule(ErrorKind::Io))
                    });
            }
            next = at.source();
        }
        evidence.dedup();
        let rule = rule.map(|rule| {
            no_room(error)
                .filter(|_| is_plain_io(rule.0))
                .unwrap_or(rule)
        });
        let (code, summary, cause, action) = rule.unwrap_or((
            "HK-9001",
            "The command failed.",
            "No rule knows this failure; the evidence is all there is.",
            "See the command's --help, or report it with the evidence",
        ));
        Self {
            code: ProblemCode(code),
            summary: summary.to_owned(),
            cause: cause.to_owned(),
            evidence,
            action: advice.unwrap_or(action).to_owned(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.code, self.summary)?;
        for line in &self.evidence {
            writeln!(f, "  evidence: {line}")?;
        }
        if !self.cause.is_empty() {
            writeln!(f, "  cause:    {}", self.cause)?;
        }
        writeln!(f, "  next:     {}", self.action)
    }
}
