//! `cargo xtask gen lab-schema --wmi FOLDER --win32 FOLDER`: makes the lab's class tables from published schema.
//!
//! ```text
//!   crates/lab/schema/classes.txt ── which classes, their keys ─────────────┐
//!   checkout of microsoft/wmi (MIT): server2019, server23h2 ─► go.rs ───────┼─► table.rs ─► 2019.txt, 23h2.txt
//!   checkout of MicrosoftDocs/win32: HyperV_v2, CIMWin32Prov ─► mof.rs ─────┘
//! ```
//!
//! Names, bases, order and numeric types come from the Go packages, which were generated from live hosts. They say
//! `string` for dates and lose the types of enumerations, so those come from the documentation's MOF. Facts only: no
//! text of either source is copied.

mod classes;
mod go;
mod mof;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use classes::ClassList;

const USAGE: &str = "usage: cargo xtask gen lab-schema --wmi FOLDER --win32 FOLDER";

/// The generations that the Go packages describe, and the table each makes.
const GENERATIONS: &[(&str, &str)] = &[("server2019", "2019.txt"), ("server23h2", "23h2.txt")];

/// Makes what is asked for.
pub(crate) fn run(arguments: &[String], workspace: &Path) -> Result<ExitCode> {
    let [what, rest @ ..] = arguments else {
        bail!(USAGE)
    };
    if what != "lab-schema" {
        bail!(USAGE);
    }
    let (mut wmi, mut win32) = (None, None);
    for pair in rest.chunks(2) {
        match pair {
            [flag, folder] if flag == "--wmi" => wmi = Some(PathBuf::from(folder)),
            [flag, folder] if flag == "--win32" => win32 = Some(PathBuf::from(folder)),
            _ => bail!(USAGE),
        }
    }
    lab_schema(workspace, &wmi.context(USAGE)?, &win32.context(USAGE)?)?;
    Ok(ExitCode::SUCCESS)
}

fn lab_schema(workspace: &Path, wmi: &Path, win32: &Path) -> Result<()> {
    let folder = workspace.join("crates/lab/schema");
    let list = std::fs::read_to_string(folder.join("classes.txt")).context("read classes.txt")?;
    let list = ClassList::parse(&list)?;
    for (package, file) in GENERATIONS {
        let text = table::generation(&list, package, wmi, win32)
            .with_context(|| format!("make {file}"))?;
        std::fs::write(folder.join(file), text).with_context(|| format!("write {file}"))?;
        println!("wrote crates/lab/schema/{file}");
    }
    Ok(())
}
