//! `hikae lab guest VM examine`: what restored bytes say of the moment that they are of. Ends with 3 when they contradict each other,
//! or are empty though the guest has written.
//!
//! **Invariant.** The lab is asked only what tells the guest's records from others' and where they lie; the verdict comes from the
//! bytes.

use std::path::PathBuf;

use block::ReadAt;
use lab::control::{GuestReport, Request};
use lab::guest::{Consistency, Examination, examine};
use serde::Serialize;

use super::place;
use crate::args::{ImageOpenArgs, LabPlaceArgs};
use crate::exit::{Exit, not_possible};
use crate::image::open_image;
use crate::output::Output;

#[derive(Serialize)]
struct Report {
    vm: String,
    id: String,
    /// `application`, `file-system`, `crash`, `empty`, `inconsistent`.
    consistency: &'static str,
    /// Why they are inconsistent.
    why: Option<String>,
    /// The last transaction that the bytes hold whole.
    committed: u64,
    /// The one that was open.
    in_flight: Option<u64>,
    /// How often the file system was mounted.
    mounts: u64,
    /// The transaction at which the guest's writers finished the frozen disks, if they did.
    recovered: Option<u64>,
    /// The last transaction of the guest in the lab, now.
    guest_committed: u64,
}

/// Runs the verb.
pub fn run(
    vm: &str,
    images: &[PathBuf],
    open: &ImageOpenArgs,
    place: &LabPlaceArgs,
    output: &Output,
) -> anyhow::Result<Exit> {
    let request = Request::Guest { vm: vm.to_owned() };
    let known: GuestReport = place::ask(place, &request, place::SOON)?;
    let Some(guest) = known.guest else {
        return Err(not_possible(format!("no guest writes in {}", known.vm)));
    };
    let needed = [
        guest.layout.ledger,
        guest.layout.copy_a,
        guest.layout.copy_b,
        guest.layout.ballast,
    ]
    .iter()
    .map(|place| place.disk.saturating_add(1))
    .max()
    .unwrap_or(1);
    if images.len() < needed {
        return Err(not_possible(format!(
            "the guest's data lies on {needed} disks, and {} images are given: give them in the order of the machine's drives",
            images.len()
        )));
    }
    let opened: Vec<_> = images
        .iter()
        .map(|path| open_image(path, open))
        .collect::<anyhow::Result<_>>()?;
    let disks: Vec<&dyn ReadAt> = opened.iter().map(|image| image as &dyn ReadAt).collect();
    let found = examine(&disks, &guest.layout, guest.tag)?;
    let report = report(known.vm, known.id, found, guest.committed);
    output.report(&report, text)?;
    // A guest that committed something left it on its disks.
    let is_lost = report.consistency == "empty" && report.guest_committed > 0;
    Ok(if report.why.is_some() || is_lost {
        Exit::Found
    } else {
        Exit::Done
    })
}

fn report(vm: String, id: String, found: Examination, guest_committed: u64) -> Report {
    let (consistency, why) = match found.consistency {
        Consistency::Empty => ("empty", None),
        Consistency::Application => ("application", None),
        Consistency::FileSystem => ("file-system", None),
        Consistency::Crash => ("crash", None),
        Consistency::Inconsistent(why) => ("inconsistent", Some(why)),
    };
    Report {
        vm,
        id,
        consistency,
        why,
        committed: found.committed,
        in_flight: found.in_flight,
        mounts: found.mounts,
        recovered: found.recovered,
        guest_committed,
    }
}

fn text(report: &Report) -> String {
    let verdict = match report.consistency {
        "empty" => "EMPTY: this guest never wrote here. Are the images in the order of the machine's drives?".to_owned(),
        "application" => {
            "APPLICATION-CONSISTENT: nothing is open, everything is flushed.".to_owned()
        }
        "file-system" => {
            "FILE-SYSTEM-CONSISTENT: everything is flushed, a transaction is open.".to_owned()
        }
        "crash" => {
            "CRASH-CONSISTENT: as after a loss of power; the ledger makes it whole.".to_owned()
        }
        _ => format!(
            "INCONSISTENT: no moment of the guest: {}",
            report.why.as_deref().unwrap_or_default()
        ),
    };
    let mut text = format!(
        "{}: {verdict}\nlast transaction   {} (the guest in the lab is at {})\n",
        report.vm, report.committed, report.guest_committed
    );
    if let Some(open) = report.in_flight {
        text.push_str(&format!("open transaction   {open}\n"));
    }
    if let Some(at) = report.recovered {
        text.push_str(&format!(
            "finished           by the guest's writers, at transaction {at}\n"
        ));
    }
    text
}
