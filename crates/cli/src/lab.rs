//! `hikae lab …`: a Hyper-V estate in software, for trying, training and rehearsing disasters.
//!
//! ```text
//!   up: scenario ─► Estate ─► LabWire, Sambas, ControlServer ─► until Ctrl-C or down
//!   the others: place (which lab?) ─► one request over its socket ─► a table or JSON
//! ```

mod down;
mod examine;
mod fault;
mod guest;
mod migrate;
mod place;
mod run;
mod status;
mod up;

use crate::args::LabVerb;
use crate::exit::Exit;
use crate::output::Output;

/// Runs one verb.
pub fn run(verb: &LabVerb, output: &Output) -> anyhow::Result<Exit> {
    match verb {
        LabVerb::Up(arguments) => up::run(arguments, output),
        LabVerb::Status { place } => status::run(place, output),
        LabVerb::Down { place } => down::run(place, output),
        LabVerb::Run { duration, place } => run::run(*duration, place, output),
        LabVerb::Fault { verb } => fault::run(verb, output),
        LabVerb::Migrate(arguments) => migrate::run(arguments, output),
        LabVerb::Guest(arguments) => guest::run(arguments, output),
    }
}
