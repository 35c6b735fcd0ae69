//! Progress bars with speed and time left, on a terminal only.

use std::sync::{Mutex, OnceLock};

use engine::{Cancellation, Progress};
use indicatif::{ProgressBar, ProgressStyle};

use crate::output::Output;

/// Draws one bar per step on standard error, or nothing where nobody looks.
pub struct Bars {
    is_drawn: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Bars {
    /// Bars for this way of printing.
    pub fn new(output: &Output) -> Self {
        Self {
            is_drawn: output.shows_progress(),
            bar: Mutex::new(None),
        }
    }

    fn with(&self, act: impl FnOnce(&ProgressBar)) {
        if let Ok(bar) = self.bar.lock()
            && let Some(bar) = bar.as_ref()
        {
            act(bar);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are ours; a mistake in one costs its looks, not the job.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bars {
    fn begin(&self, step: &str, total_bytes: Option<u64>) {
        if !self.is_drawn {
            return;
        }
        let bar = match total_bytes {
            Some(total) => ProgressBar::new(total).with_style(style(
                "{msg:24!} [{bar:32}] {percent:>3}% {binary_bytes_per_sec:>12} {eta:>6} left",
            )),
            None => ProgressBar::new_spinner().with_style(style(
                "{msg:24!} {spinner} {binary_bytes} {binary_bytes_per_sec}",
            )),
        };
        bar.set_message(step.to_owned());
        if let Ok(mut slot) = self.bar.lock()
            && let Some(old) = slot.replace(bar)
        {
            old.finish_and_clear();
        }
    }

    fn advance(&self, bytes: u64) {
        self.with(|bar| bar.inc(bytes));
    }

    fn warn(&self, text: &str) {
        let drawn = self.is_drawn && self.bar.lock().is_ok_and(|bar| bar.is_some());
        if drawn {
            self.with(|bar| bar.suspend(|| eprintln!("warning: {text}")));
        } else {
            eprintln!("warning: {text}");
        }
    }

    fn end(&self) {
        if let Ok(mut slot) = self.bar.lock()
            && let Some(bar) = slot.take()
        {
            bar.finish_and_clear();
        }
    }
}

/// One bar for work on images that tells how far it is.
pub struct DiskBar {
    bar: Option<ProgressBar>,
}

impl DiskBar {
    /// A bar that says what is done.
    pub fn new(output: &Output, step: &str) -> Self {
        let bar = output.shows_progress().then(|| {
            let bar = ProgressBar::new(0).with_style(style(
                "{msg:24!} [{bar:32}] {percent:>3}% {binary_bytes_per_sec:>12} {eta:>6} left",
            ));
            bar.set_message(step.to_owned());
            bar
        });
        Self { bar }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl vdisk::convert::Progress for DiskBar {
    fn advance(&self, done_bytes: u64, total_bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total_bytes);
            bar.set_position(done_bytes);
        }
    }
}

/// The switch that Ctrl-C (or SIGTERM) turns: what runs stops at its next safe place. A second Ctrl-C ends the process. There
/// is one for the whole process, however often it is asked for.
pub fn cancellation() -> Cancellation {
    static SWITCH: OnceLock<Cancellation> = OnceLock::new();
    SWITCH.get_or_init(listen).clone()
}

fn listen() -> Cancellation {
    let cancel = Cancellation::default();
    let switch = cancel.clone();
    let handler = ctrlc::set_handler(move || {
        if switch.is_cancelled() {
            std::process::exit(130);
        }
        eprintln!("stopping at the next safe place; press Ctrl-C again to end at once");
        switch.cancel();
    });
    if let Err(error) = handler {
        eprintln!("warning: Ctrl-C will end this at once instead of stopping it: {error}");
    }
    cancel
}
