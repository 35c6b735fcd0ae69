//! `cat`: the contents of one file on standard output, as they are. With `--json` too: they are what was asked for.

use std::io::{self, Write};

use engine::Cancellation;
use engine::inside::{InsideDisks, LastLink, read_file};

use crate::exit::{Exit, not_possible};

/// Prints the file.
pub fn run(inside: &InsideDisks, path: &str, cancel: &Cancellation) -> anyhow::Result<Exit> {
    let Some(place) = inside.locate(path, LastLink::Follow)? else {
        let what = "this names the list of volumes, not a file";
        return Err(not_possible(what));
    };
    let mut stdout = io::stdout().lock();
    let mut is_wanted = true;
    let read = read_file(&place, cancel, |piece| match stdout.write_all(piece) {
        Ok(()) => Ok(()),
        Err(error) => {
            // Who closed standard output has seen enough.
            is_wanted = error.kind() != io::ErrorKind::BrokenPipe;
            let what = "writing to standard output";
            Err(engine::Error::new(engine::ErrorKind::Io, what).caused_by(error))
        }
    });
    match read {
        Err(_) if !is_wanted => return Ok(Exit::Done),
        outcome => outcome?,
    };
    match stdout.flush() {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        outcome => {
            outcome?;
            Ok(Exit::Done)
        }
    }
}
