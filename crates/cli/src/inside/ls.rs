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
    let mut lines = Lines::new(what);
    let damage = list(place, depth, detail, cancel, |file| {
        lines.add(&file, &mut printer.text);
        printer.flush_full()
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
        self.flush_full()
    }

    /// Prints what was gathered, once it is enough.
    fn flush_full(&mut self) -> engine::Result<()> {
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
        obstacle: obstacle(file).map(str::to_owned),
    }
}

/// Lines of a listing as text.
struct Lines<'a> {
    what: &'a LsArgs,
    /// A second, and how it is told: neighbours were often made together.
    second: Option<(i64, String)>,
}

impl<'a> Lines<'a> {
    fn new(what: &'a LsArgs) -> Self {
        Self { what, second: None }
    }

    fn add(&mut self, file: &ListedFile, text: &mut String) {
        if self.what.long {
            self.add_facts(file, text);
        }
        let begin = text.len();
        if self.what.recursive {
            file.add_path_to(text);
        } else {
            text.push_str(&file.display_name());
        }
        make_printable(text, begin);
        if file.kind == Some(FileKind::Directory) && !text.ends_with('/') {
            text.push('/');
        }
        if self.what.long {
            let more = text.len();
            if let Some(target) = &file.link_target {
                text.push_str(" -> ");
                text.push_str(&target.to_string());
            }
            if let Some(obstacle) = obstacle(file) {
                text.push_str("  (");
                text.push_str(obstacle);
                text.push(')');
            }
            make_printable(text, more);
        }
        text.push('\n');
    }

    /// What stands before the name.
    fn add_facts(&mut self, file: &ListedFile, text: &mut String) {
        let metadata = file.known();
        add_padded(text, kind_word(file), 7);
        let begin = text.len();
        if let Some(owner) = file.owner() {
            let mode = u32::from(owner.mode);
            text.extend([9, 6, 3, 0].map(|bits| digit(mode >> bits & 7)));
            text.push(' ');
            add_number(text, owner.user.into(), 5);
            text.push(' ');
            add_number(text, owner.group.into(), 5);
        } else if let Some(attributes) = metadata.and_then(|it| it.windows_attributes) {
            text.push_str(&attribute_letters(attributes));
        }
        let rights = text.len().saturating_sub(begin);
        text.extend(std::iter::repeat_n(
            ' ',
            17_usize.saturating_sub(rights).max(1),
        ));
        add_number(text, metadata.map_or(0, |it| it.size_bytes), 15);
        text.push(' ');
        let modified = file.times().modified;
        let told = match (modified, &mut self.second) {
            (None, _) => "",
            (Some(time), Some((second, told))) if *second == time.seconds => told,
            (Some(time), kept) => &kept.insert((time.seconds, calendar(time))).1,
        };
        add_padded(text, told, 20);
    }
}

fn digit(value: u32) -> char {
    char::from_digit(value, 10).unwrap_or('?')
}

/// Text, and blanks behind it up to a width.
fn add_padded(text: &mut String, word: &str, width: usize) {
    text.push_str(word);
    let blanks = width.saturating_sub(word.len()).max(1);
    text.extend(std::iter::repeat_n(' ', blanks));
}

/// A number, and blanks before it up to a width.
fn add_number(text: &mut String, number: u64, width: usize) {
    let digits = number.checked_ilog10().unwrap_or(0).saturating_add(1);
    let blanks = width.saturating_sub(usize::try_from(digits).unwrap_or(width));
    text.extend(std::iter::repeat_n(' ', blanks));
    let mut unit = 10_u64.saturating_pow(digits.saturating_sub(1));
    while unit > 0 {
        text.push(digit(u32::try_from(number / unit % 10).unwrap_or(0)));
        unit /= 10;
    }
}

/// Why the contents of a file cannot be read.
fn obstacle(file: &ListedFile) -> Option<&str> {
    match &file.metadata {
        Some(Ok(metadata)) => metadata.obstacle.as_deref(),
        Some(Err(error)) => Some(error),
        None => None,
    }
}

/// A terminal is not to be commanded by what a stranger calls a file: what stands from `begin` on is escaped.
fn make_printable(text: &mut String, begin: usize) {
    let added = text.get(begin..).unwrap_or_default();
    // Nearly every name, told at a glance.
    let is_plain = added.bytes().all(|byte| (0x20..0x7F).contains(&byte));
    if is_plain || !added.chars().any(char::is_control) {
        return;
    }
    let escaped: String = added
        .chars()
        .flat_map(|character| {
            let escaped = character.is_control();
            let plain = (!escaped).then_some(character);
            let code = escaped.then(|| character.escape_default());
            plain.into_iter().chain(code.into_iter().flatten())
        })
        .collect();
    text.truncate(begin);
    text.push_str(&escaped);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_words_stand_in_their_columns() {
        for number in [0, 9, 10, 12_345, 99_999, 100_000, u64::MAX] {
            for width in [0, 1, 5, 15] {
                let mut text = String::from("x");
                add_number(&mut text, number, width);
                assert_eq!(text, format!("x{number:>width$}"));
            }
        }
        let mut text = String::new();
        add_padded(&mut text, "folder", 7);
        add_padded(&mut text, "reparse-point", 7);
        assert_eq!(text, "folder reparse-point ");
    }

    #[test]
    fn what_commands_a_terminal_is_escaped_and_nothing_else() {
        let mut text = String::from("\u{1b}kept");
        make_printable(&mut text, 5);
        assert_eq!(text, "\u{1b}kept");
        text.push_str("a\nb\u{1b}[0m\u{9b}ä");
        make_printable(&mut text, 5);
        assert_eq!(text, "\u{1b}kepta\\nb\\u{1b}[0m\\u{9b}ä");
    }
}
