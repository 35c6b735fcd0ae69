//! `hikae disk serve`: versions, read-only, over NBD and as files.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use engine::job::serve_disks::{ServedDisk, ServedVersion, ServedVersions};
use engine::job::{JobContext, NoJournal};
use repo::ReadProtection;

use crate::args::ServeVersionArgs;
use crate::exit::Exit;
use crate::keys;
use crate::output::Output;
use crate::progress::{Bars, cancellation};
use crate::serving::{self, Guarded, Offer, chain};

/// Runs the verb.
pub fn run(arguments: &ServeVersionArgs, output: &Output) -> anyhow::Result<Exit> {
    let repository = keys::open(&arguments.repo)?;
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let selectors = arguments
        .selectors
        .iter()
        .map(|text| text.parse())
        .collect::<Result<Vec<_>, _>>()?;
    let versions = ServedVersions::open(&repository, &selectors, context)?;
    let offers = offers(versions.versions());
    let guarded = Guarded {
        protected_from_gc: Some(versions.protection() != ReadProtection::None),
        check: &|| versions.check(),
    };
    let outcome = serving::run(offers, &arguments.what, &guarded, &cancel, output);
    let was_lost = versions.check().is_err();
    match versions.finish() {
        // It was said when it happened, and the one JSON object is printed already.
        _ if was_lost => outcome.map(|()| Exit::Fenced),
        Ok(()) => outcome.map(|()| Exit::Done),
        Err(error) => {
            eprintln!(
                "warning: the lease could not be given back: {}",
                chain(&error)
            );
            outcome.map(|()| Exit::Done)
        }
    }
}

/// What is offered: each disk by NAME@VERSION and, where a version has several, its label; the newest also by NAME alone.
fn offers(versions: &[ServedVersion]) -> Vec<Offer<'_>> {
    let mut offers = Vec::new();
    for version in versions {
        let whole = format!("{}@{}", version.name, version.sequence);
        let is_newest = versions
            .iter()
            .all(|other| other.name != version.name || other.sequence <= version.sequence);
        let created = Duration::from_millis(version.created_unix_ms);
        let modified = SystemTime::UNIX_EPOCH
            .checked_add(created)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let mut taken = HashSet::new();
        for (number, disk) in (1..).zip(&version.disks) {
            let part = match version.disks.as_slice() {
                [_] => String::new(),
                _ if disk.label.is_empty() || !taken.insert(&disk.label) => format!("/{number}"),
                _ => format!("/{}", disk.label),
            };
            offers.push(offer(version, disk, &whole, &part, is_newest, modified));
        }
    }
    offers
}

fn offer<'a>(
    version: &ServedVersion,
    disk: &'a ServedDisk,
    whole: &str,
    part: &str,
    is_newest: bool,
    modified: SystemTime,
) -> Offer<'a> {
    Offer {
        name: format!("{whole}{part}"),
        other_name: is_newest.then(|| format!("{}{part}", version.name)),
        description: format!(
            "version {} of {}, committed {}, read-only",
            version.sequence,
            version.name,
            repo::rfc3339(version.created_unix_ms),
        ),
        root: Some(disk.root.to_string()),
        disk: disk.reader(),
        modified,
        vhdx: Box::new(move |over| Ok(disk.vhdx(over)?)),
    }
}
