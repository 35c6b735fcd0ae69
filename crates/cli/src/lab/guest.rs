//! `hikae lab guest VM …`: a machine and what writes in it.

use lab::control::{GuestReport, PowerChange, Request};
use lab::guest::WriterState;

use super::{examine, place};
use crate::args::{LabGuestArgs, LabGuestVerb, WritersArg};
use crate::exit::{Exit, not_possible};
use crate::output::Output;

/// Runs the verb.
pub fn run(arguments: &LabGuestArgs, output: &Output) -> anyhow::Result<Exit> {
    let vm = arguments.vm.clone();
    let power = |change: PowerChange| Request::GuestPower {
        vm: vm.clone(),
        change,
    };
    let request = match &arguments.verb {
        LabGuestVerb::Status => Request::Guest { vm },
        LabGuestVerb::Write { mib } => Request::GuestWrite {
            vm,
            bytes: mib
                .get()
                .checked_mul(1 << 20)
                .ok_or_else(|| not_possible(format!("{mib} MiB to write")))?,
        },
        LabGuestVerb::Writers { state } => Request::GuestWriters {
            vm,
            state: match state {
                WritersArg::Stable => WriterState::Stable,
                WritersArg::Fails => WriterState::Fails,
                WritersArg::TimesOut => WriterState::TimesOut,
                WritersArg::Lies => WriterState::Lies,
            },
        },
        LabGuestVerb::Start => power(PowerChange::Start),
        LabGuestVerb::ShutDown => power(PowerChange::ShutDown),
        LabGuestVerb::TurnOff => power(PowerChange::TurnOff),
        LabGuestVerb::Save => power(PowerChange::Save),
        LabGuestVerb::Pause => power(PowerChange::Pause),
        LabGuestVerb::Reset => power(PowerChange::Reset),
        LabGuestVerb::Examine { images, open } => {
            return examine::run(&arguments.vm, images, open, &arguments.place, output);
        }
    };
    let report: GuestReport = place::ask(&arguments.place, &request, place::LATER)?;
    output.report(&report, text)?;
    Ok(Exit::Done)
}

/// What a state of writers is called.
fn writers(state: WriterState) -> &'static str {
    match state {
        WriterState::Stable => "stable",
        WriterState::Fails => "set to fail",
        WriterState::TimesOut => "set to time out",
        WriterState::Lies => "set to lie",
    }
}

fn text(report: &GuestReport) -> String {
    let place = match (&report.state, &report.node) {
        (Some(state), Some(node)) => format!("{state}, on {node}"),
        _ => "gone; its guest is remembered".to_owned(),
    };
    let mut text = format!("{} ({}): {place}\n", report.vm, report.id);
    let Some(guest) = &report.guest else {
        text.push_str("No guest writes in it.\n");
        return text;
    };
    text.push_str(&format!(
        "guest              {:?}, writers {}\ncommitted          transaction {}\nnot flushed        {} writes\n",
        guest.os,
        writers(guest.writers),
        guest.committed,
        guest.unflushed
    ));
    if guest.frozen {
        text.push_str("holds still        for a checkpoint\n");
    }
    if let Some(why) = &guest.broken {
        text.push_str(&format!(
            "BROKEN             it found its disks inconsistent: {why}\n"
        ));
    }
    text
}
