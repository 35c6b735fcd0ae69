//! `ls`: the files of a folder. Ends with 3 when something of it is damaged.
//!
//! Both are printed while they are read, one file per line; JSON is one object `{"files": […], "damage": […]}`, or
//! `{"volumes": […]}` where the root of a disk with several file systems was asked for. Where reading fails in the middle,
//! the object ends with `"problem": {…}`.

use std::io::{self, Write};

use engine::Cancellation;
use engine::inside::{Depth, Detail, InsideDisks, LastLink, ListedFile, Place, inspect, list};
use guestfs::filesystem::FileKind;
use serde::Serialize;

use super::when::calendar;
use crate::args::LsArgs;
use crate::exit::Exit;
use crate::output::Output;

/// Bytes that are gathered before they are printed.
const PRINTED_BYTES: usize = 64 << 10;

#[derive(Serialize)]
struct FileReport {
    path: String,
    /// The bytes of a path that is no text, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    kind: &'static str,
    size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    modified: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    windows_attributes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link_target: Option<String>,
    /// Why its contents cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    obstacle: Option<String>,
}

/// Lists.
pub fn run(
    inside: &InsideDisks,
    what: &LsArgs,
    cancel: &Cancellation,
    output: &Output,
) -> anyhow::Result<Exit> {
    let Some(place) = inside.locate(&what.path, LastLink::Follow)? else {
        let report = inspect(inside)?;
        let volumes = serde_json::json!({ "volumes": report.volumes });
        output.report(&volumes, |_| {
            let table = super::inspect::volumes(&report.volumes);
            format!("{table}\nFiles lie below a volume's number, as in 1:/\n")
        })?;
        return Ok(Exit::Done);
    };
    let depth = if what.recursive {
        Depth::Everything
    } else {
        Depth::Folder
    };
    let mut printer = Printer::default();
    let outcome = if output.is_json() {
        json(&place, depth, cancel, &mut printer)
    } else {
        text(&place, depth, what, cancel, output, &mut printer)
    };
    match outcome {
        // Who closed standard output has seen enough.
        Err(_) if printer.is_closed => Ok(Exit::Done),
        outcome => outcome,
    }
}

fn text(
    place: &Place,
    depth: Depth,
    what: &LsArgs,
    cancel: &Cancellation,
    output: &Output,
    printer: &mut Printer,
) -> anyhow::Result<Exit> {
    let detail = if what.long {
        Detail::Metadata
    } else {
        Detail::Names
    };
    let damage = list(place, depth, detail, cancel, |file| {
        printer.add(&line(&file, what))
    })?;
    printer.flush()?;
    for damage in &damage {
        output.note(&format!("damaged: {damage}"));
    }
    Ok(exit(&damage))
}

/// One object, a file a line, written while it is read.
fn json(
    place: &Place,
    depth: Depth,
    cancel: &Cancellation,
    printer: &mut Printer,
) -> anyhow::Result<Exit> {
    printer.add("{\"files\": [")?;
    let mut separator = "\n";
    let listed = list(place, depth, Detail::Metadata, cancel, |file| {
        let object = serde_json::to_string(&file_report(&file)).map_err(|error| {
            engine::Error::new(engine::ErrorKind::Io, "a line of the listing").caused_by(error)
        })?;
        printer.add(separator)?;
        separator = ",\n";
        printer.add(&object)
    });
    match listed {
        Ok(damage) => {
            let told = serde_json::to_string(&damage)?;
            printer.add(&format!("\n], \"damage\": {told}}}\n"))?;
            printer.flush()?;
            Ok(exit(&damage))
        }
        Err(error) if printer.has_printed && !printer.is_closed => {
            // The object was begun: it ends with the problem, so that it is one object all the same.
            let problem = serde_json::to_string(&engine::Problem::of(&error))?;
            printer.add(&format!("\n], \"damage\": [], \"problem\": {problem}}}\n"))?;
            printer.flush()?;
            Ok(Exit::of(&error))
        }
        Err(error) => Err(error.into()),
    }
}

fn exit(damage: &[String]) -> Exit {
    if damage.is_empty() {
        Exit::Done
    } else {
        Exit::Found
    }
}

/// Standard output, in large pieces.
#[derive(Default)]
struct Printer {
    text: String,
    has_printed: bool,
    is_closed: bool,
}

impl Printer {
    fn add(&mut self, text: &str) -> engine::Result<()> {
        self.text.push_str(text);
        if self.text.len() >= PRINTED_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> engine::Result<()> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(self.text.as_bytes());
        self.has_printed = true;
        self.text.clear();
        written.and_then(|()| stdout.flush()).map_err(|error| {
            self.is_closed = error.kind() == io::ErrorKind::BrokenPipe;
            let what = "writing to standard output";
            engine::Error::new(engine::ErrorKind::Io, what).caused_by(error)
        })
    }
}

fn kind_word(file: &ListedFile) -> &'static str {
    match file.kind {
        Some(FileKind::Regular) => "file",
        Some(FileKind::Directory) => "folder",
        Some(FileKind::SymbolicLink) => "link",
        Some(FileKind::ReparsePoint(_)) => "reparse-point",
        Some(FileKind::CharacterDevice(_)) => "character-device",
        Some(FileKind::BlockDevice(_)) => "block-device",
        Some(FileKind::Fifo) => "fifo",
        Some(FileKind::Socket) => "socket",
        None => "damaged",
    }
}

fn file_report(file: &ListedFile) -> FileReport {
    let metadata = file.known();
    let hexadecimal = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let owner = file.owner();
    let times = file.times();
    FileReport {
        path: file.display_path(),
        path_bytes: file.path_bytes().map(hexadecimal),
        kind: kind_word(file),
        size_bytes: metadata.map_or(0, |metadata| metadata.size_bytes),
        modified: times.modified.map(calendar),
        created: times.created.map(calendar),
        mode: owner.map(|owner| format!("{:04o}", owner.mode)),
        user: owner.map(|owner| owner.user),
        group: owner.map(|owner| owner.group),
        windows_attributes: metadata.and_then(|metadata| metadata.windows_attributes),
        link_target: file.link_target.as_ref().map(ToString::to_string),
        obstacle: match &file.metadata {
            Some(Ok(metadata)) => metadata.obstacle.clone(),
            Some(Err(error)) => Some(error.clone()),
            None => None,
        },
    }
}

fn line(file: &ListedFile, what: &LsArgs) -> String {
    let mut name = if what.recursive {
        file.display_path()
    } else {
        file.display_name()
    };
    name = printable(name);
    if file.kind == Some(FileKind::Directory) && !name.ends_with('/') {
        name.push('/');
    }
    if !what.long {
        name.push('\n');
        return name;
    }
    if let Some(target) = &file.link_target {
        name.push_str(&format!(" -> {}", printable(target.to_string())));
    }
    let report = file_report(file);
    if let Some(obstacle) = &report.obstacle {
        name.push_str(&format!("  ({})", printable(obstacle.clone())));
    }
    let rights = match (report.mode, report.user, report.group) {
        (Some(mode), Some(user), Some(group)) => format!("{mode} {user:>5} {group:>5}"),
        _ => report
            .windows_attributes
            .map_or(String::new(), attribute_letters),
    };
    let modified = report.modified.unwrap_or_default();
    format!(
        "{:<6} {rights:<16} {:>15} {modified:<19} {name}\n",
        report.kind, report.size_bytes
    )
}

/// A terminal is not to be commanded by what a stranger calls a file.
fn printable(text: String) -> String {
    if !text.chars().any(char::is_control) {
        return text;
    }
    text.chars()
        .flat_map(|character| {
            let escaped = character.is_control();
            let plain = (!escaped).then_some(character);
            let code = escaped.then(|| character.escape_default());
            plain.into_iter().chain(code.into_iter().flatten())
        })
        .collect()
}

/// As `attrib` of Windows shows them.
fn attribute_letters(attributes: u32) -> String {
    const LETTERS: [(u32, char); 8] = [
        (0x1, 'R'),
        (0x2, 'H'),
        (0x4, 'S'),
        (0x20, 'A'),
        (0x200, 'P'),
        (0x400, 'L'),
        (0x800, 'C'),
        (0x4000, 'E'),
    ];
    LETTERS
        .iter()
        .filter(|(bit, _)| attributes & bit != 0)
        .map(|(_, letter)| *letter)
        .collect()
}
