//! `hikae lab down`: a lab ends, and what it made for itself alone is gone when this returns.

use std::time::Duration;

use lab::control::{DownReport, Request};

use super::place;
use crate::args::LabPlaceArgs;
use crate::exit::Exit;
use crate::output::Output;

/// Requests under way, Sambas and files take some time to end.
const END: Duration = Duration::from_secs(120);

/// Runs the verb.
pub fn run(place: &LabPlaceArgs, output: &Output) -> anyhow::Result<Exit> {
    let mut client = place::connect(place)?;
    let report: DownReport = client
        .ask(&Request::Down {}, place::SOON)
        .map_err(place::failed)?;
    client.wait_for_end(END).map_err(place::failed)?;
    output.report(&report, |report| {
        if report.folder_stays {
            format!("It has ended. Its files stay in {}\n", report.folder)
        } else {
            "It has ended.\n".to_owned()
        }
    })?;
    Ok(Exit::Done)
}
