//! `ls`: the files of a folder. Ends with 3 when something of it is damaged.
//!
//! Text is printed while it is read, one file per line; JSON is one object `{"files": […], "damage": […]}`, or
//! `{"volumes": […]}` where the root of a disk with several file systems was asked for.

use engine::Cancellation;
use engine::inside::{Depth, InsideDisks, LastLink, ListedFile, inspect, list};
use guestfs::filesystem::FileKind;
use serde::Serialize;

use super::when::calendar;
use crate::args::LsArgs;
use crate::exit::Exit;
use crate::output::{Output, print_all};

/// Characters that are gathered before they are printed.
const PRINTED_CHARS: usize = 64 << 10;

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

#[derive(Serialize)]
struct Report {
    files: Vec<FileReport>,
    damage: Vec<String>,
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
    let mut report = Report {
        files: Vec::new(),
        damage: Vec::new(),
    };
    if output.is_json() {
        report.damage = list(&place, depth, cancel, |file| {
            report.files.push(file_report(&file));
            Ok(())
        })?;
        output.report(&report, |_| String::new())?;
    } else {
        let mut text = String::new();
        report.damage = list(&place, depth, cancel, |file| {
            text.push_str(&line(&file, what));
            if text.len() >= PRINTED_CHARS {
                print(&text)?;
                text.clear();
            }
            Ok(())
        })?;
        print(&text)?;
        for damage in &report.damage {
            output.note(&format!("damaged: {damage}"));
        }
    }
    Ok(if report.damage.is_empty() {
        Exit::Done
    } else {
        Exit::Found
    })
}

fn print(text: &str) -> engine::Result<()> {
    print_all(text).map_err(|error| {
        let what = "writing to standard output";
        engine::Error::new(engine::ErrorKind::Io, what).caused_by(error)
    })
}

fn kind_word(file: &ListedFile) -> &'static str {
    match file.metadata.as_ref().map(|metadata| metadata.kind) {
        Ok(FileKind::Regular) => "file",
        Ok(FileKind::Directory) => "folder",
        Ok(FileKind::SymbolicLink) => "link",
        Ok(FileKind::ReparsePoint(_)) => "reparse-point",
        Ok(FileKind::CharacterDevice(_)) => "character-device",
        Ok(FileKind::BlockDevice(_)) => "block-device",
        Ok(FileKind::Fifo) => "fifo",
        Ok(FileKind::Socket) => "socket",
        Err(_) => "damaged",
    }
}

fn file_report(file: &ListedFile) -> FileReport {
    let metadata = file.metadata.as_ref().ok();
    let is_text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
    let hexadecimal = || {
        let bytes = file
            .path
            .iter()
            .flat_map(|name| [b"/", name.as_bytes()].concat());
        bytes.map(|byte| format!("{byte:02x}")).collect()
    };
    let are_text = file.path.iter().all(|name| is_text(name.as_bytes()));
    let owner = file.owner();
    let times = file.times();
    FileReport {
        path: file.display_path(),
        path_bytes: (!are_text).then(hexadecimal),
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
            Ok(metadata) => metadata.obstacle.clone(),
            Err(error) => Some(error.clone()),
        },
    }
}

fn line(file: &ListedFile, what: &LsArgs) -> String {
    let mut name = if what.recursive {
        file.display_path()
    } else {
        file.path
            .last()
            .map_or_else(|| "/".to_owned(), ToString::to_string)
    };
    name = printable(&name);
    let kind = file.metadata.as_ref().ok().map(|metadata| metadata.kind);
    if kind == Some(FileKind::Directory) && !name.ends_with('/') {
        name.push('/');
    }
    if !what.long {
        return format!("{name}\n");
    }
    if let Some(target) = &file.link_target {
        name.push_str(&format!(" -> {}", printable(&target.to_string())));
    }
    let report = file_report(file);
    if let Some(obstacle) = &report.obstacle {
        name.push_str(&format!("  ({})", printable(obstacle)));
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
fn printable(text: &str) -> String {
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
