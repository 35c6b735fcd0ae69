//! Where fuzzing begins: sound files, out of the corpora and made on the spot, in the form that a target reads.
//!
//! Without corpora or tools there are fewer, which is said. A file that holds too much is left out.

#[path = "../../../fuzz/src/case.rs"]
mod case;

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{INPUT_MAX_BYTES, made};

/// Larger files are not unpacked at all.
const FILE_MAX_BYTES: u64 = 1 << 30;
const BUFFER_BYTES: usize = 1 << 20;

/// Groups of the corpora, which of their files (by a part of the name), and the targets that they are seeds of.
const GIVEN: &[(&str, &str, &[&str])] = &[
    ("btrfs", "", &["btrfs", "probe"]),
    ("ext", "", &["ext", "probe"]),
    ("fat", "fat12", &["fat", "probe"]),
    ("fat", "fat32", &["fat", "probe"]),
    ("fat", "exfat", &["exfat", "probe"]),
    ("ldm", "", &["disk"]),
    ("lvm", "", &["disk"]),
    ("ntfs", "", &["ntfs", "probe"]),
    ("parttable", "", &["disk", "probe"]),
    ("probe", "", &["disk", "probe"]),
    ("probe", "ext3", &["ext"]),
    ("probe", "fat", &["fat"]),
    ("probe", "exfat", &["exfat"]),
    ("probe", "ntfs", &["ntfs"]),
    ("probe", "xfs", &["xfs"]),
    ("probe", "luks", &["encrypted"]),
    ("qcow2", "", &["qcow2"]),
    ("registry", "", &["registry"]),
    ("vhd", "", &["vhd"]),
    ("vhdx", "", &["vhdx"]),
    ("vmconfig", "", &["vmconfig"]),
    ("vmdk", "", &["vmdk"]),
    ("xfs", "", &["xfs", "probe"]),
];

/// Writes the seeds of these targets, each into its folder.
pub(super) fn write(workspace: &Path, folder: &Path, targets: &[String]) -> Result<()> {
    let corpora = std::env::var_os("HIKAE_CORPORA")
        .map_or_else(|| workspace.join("../shared/corpora"), PathBuf::from);
    for target in targets {
        let own = folder.join(target);
        std::fs::create_dir_all(&own).with_context(|| own.display().to_string())?;
        let mut count = 0;
        for (group, part, _) in GIVEN.iter().filter(|it| it.2.contains(&target.as_str())) {
            count += given(&corpora.join(group), part, &own)?;
        }
        if target == "wsman" {
            count += messages(&workspace.join("crates/wsman/tests/golden"), &own)?;
        }
        count += made::write(target, &own)?;
        println!("{target}: {count} seeds");
    }
    Ok(())
}

/// Messages as they stand: the input of a parser of text is the text.
fn messages(folder: &Path, own: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if let Some(name) = path
            .file_name()
            .filter(|_| path.extension().is_some_and(|it| it == "xml"))
        {
            std::fs::copy(&path, own.join(name)).with_context(|| path.display().to_string())?;
            count += 1;
        }
    }
    Ok(count)
}

fn given(group: &Path, part: &str, own: &Path) -> Result<usize> {
    let Ok(entries) = std::fs::read_dir(group) else {
        println!("no seeds from {}: it is not there", group.display());
        return Ok(0);
    };
    let mut count = 0;
    for entry in entries {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let seed = own.join(&name);
        if !name.contains(part) {
            continue;
        }
        if seed.exists() || put_unpacked(&path, &seed)? {
            count += 1;
        }
    }
    Ok(count)
}

/// Writes one seed; whether it was small enough.
pub(super) fn put(files: &mut [&mut dyn Read], seed: &Path) -> Result<bool> {
    match case::encode(files, INPUT_MAX_BYTES)? {
        Some(input) => {
            std::fs::write(seed, input).with_context(|| seed.display().to_string())?;
            Ok(true)
        }
        None => Ok(false),
    }
}

/// Writes the seed of a file of the corpora; not if it is too large or in a form not known.
fn put_unpacked(path: &Path, seed: &Path) -> Result<bool> {
    let tool = match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz -dc",
        Some("gz") => "gzip -dc",
        Some("bz2") => "bzip2 -dc",
        Some("zst") => "zstd -dc",
        Some("zip") => "unzip -p",
        _ => "cat",
    };
    let mut child = Command::new("sh")
        .args([
            "-c",
            &format!("{tool} \"$1\" | head -c {FILE_MAX_BYTES}"),
            "sh",
        ])
        .arg(path)
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("unpack {}", path.display()))?;
    let pipe = child.stdout.take().context("a pipe")?;
    let is_put = put(
        &mut [&mut BufReader::with_capacity(BUFFER_BYTES, pipe)],
        seed,
    )?;
    // It may still be writing to a pipe that is gone.
    child
        .wait()
        .with_context(|| format!("unpack {}", path.display()))?;
    Ok(is_put)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::case;

    #[test]
    fn a_seed_holds_the_sectors_that_are_not_zero_and_where_they_lie() {
        let mut file = vec![0_u8; 2000];
        file[512..1024].fill(7);
        file[1999] = 9;
        let input = case::encode(&mut [&mut file.as_slice() as &mut dyn Read], 1 << 20);
        let input = input.expect("reading").expect("small enough");
        assert_eq!(input[..8], 2000_u64.to_le_bytes());
        assert_eq!(input[8..32], [0; 24]);
        assert_eq!(input[32..34], 2_u16.to_le_bytes());
        assert_eq!(input[34..42], [0, 0, 1, 0, 1, 0, 0, 0]);
        assert_eq!(input[42..50], [0, 0, 1, 0, 3, 0, 0, 0]);
        assert_eq!(input[50..562], [7; 512]);
        assert_eq!(input[562..].len(), 512);
        assert_eq!(input[562 + 1999 - 1536], 9);
    }

    #[test]
    fn what_holds_too_much_is_no_seed() {
        let file = vec![1_u8; 4096];
        let input = case::encode(&mut [&mut file.as_slice() as &mut dyn Read], 2048);
        assert_eq!(input.expect("reading"), None);
    }
}
