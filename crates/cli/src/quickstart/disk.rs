//! `hikae quickstart --disk`: the whole story on a small sample disk, with what each step cost.

use engine::job::{JobContext, NoJournal};
use engine::quickstart::{
    DEFAULT_SIZE_BYTES, Leftovers, QuickstartReport, QuickstartRequest, quickstart,
};

use crate::args::QuickstartArgs;
use crate::exit::Exit;
use crate::image::convert::system_ids;
use crate::keys;
use crate::output::{Output, Table, bytes, seconds};
use crate::progress::{Bars, cancellation};

/// Runs the verb.
pub fn run(arguments: &QuickstartArgs, output: &Output) -> anyhow::Result<Exit> {
    let request = QuickstartRequest {
        folder: super::folder(arguments),
        size_bytes: DEFAULT_SIZE_BYTES,
        leftovers: if arguments.keep {
            Leftovers::Keep
        } else {
            Leftovers::Remove
        },
        environment: keys::environment(),
        ids: system_ids()?,
    };
    let bars = Bars::new(output);
    let cancel = cancellation();
    let context = JobContext {
        progress: &bars,
        cancel: &cancel,
        journal: &NoJournal,
    };
    let result = quickstart(&request, context);
    engine::Progress::end(&bars);
    let report = result?;
    let keep = arguments.keep;
    output.report(&report, |report| text(report, keep))?;
    Ok(if report.is_proved {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn ms(value: u64) -> String {
    let value = u32::try_from(value).unwrap_or(u32::MAX);
    seconds(f64::from(value) / 1000.0)
}

fn text(report: &QuickstartReport, keep: bool) -> String {
    let mut steps = Table::new(&["step", "took"], &[1]);
    for step in &report.steps {
        steps.row(vec![step.step.clone(), ms(step.elapsed_ms)]);
    }
    let mut costs = Table::new(
        &["version", "disk", "read", "sent", "stored", "took"],
        &[1, 2, 3, 4, 5],
    );
    for backup in [&report.first, &report.second] {
        costs.row(vec![
            format!("{}@{}", backup.name, backup.sequence),
            bytes(backup.length_bytes),
            bytes(backup.read_bytes),
            bytes(backup.sent_bytes),
            bytes(backup.stored_bytes),
            ms(backup.elapsed_ms),
        ]);
    }
    let proof = if report.is_proved {
        "Both versions came back bit for bit: every byte compared, both roots equal."
    } else {
        "A RESTORED DISK IS NOT WHAT WAS PROTECTED."
    };
    let place = if keep {
        format!("Look around: {}\n", report.folder.display())
    } else {
        "Nothing was left behind; --keep leaves it for a look.\n".to_owned()
    };
    format!(
        "A sample VHDX of {} ({} in use) was protected, {} of it changed, protected again,\nand both versions restored.\n\n\
         {steps}\n{costs}\n\
         Two full versions of a disk with {} in use take {} in the encrypted repository.\n\n\
         {proof}\n  {}@{}  root {}\n  {}@{}  root {}\n\n{place}\
         Next: hikae repo init DIR, then hikae disk backup IMAGE --repo DIR --name NAME\n",
        bytes(report.size_bytes),
        bytes(report.used_bytes),
        bytes(report.changed_bytes),
        bytes(report.used_bytes),
        bytes(report.repository_bytes),
        report.first.name,
        report.first.sequence,
        report.first.root,
        report.second.name,
        report.second.sequence,
        report.second.root,
    )
}
