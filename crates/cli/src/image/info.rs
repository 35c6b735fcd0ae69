//! `hikae image info`: what an image says about itself, and its chain.

use std::path::Path;

use serde::Serialize;
use vdisk::image::{ChainMode, Image, Layer};

use super::{format_name, open_options, subformat_name};
use crate::args::ImageOpenArgs;
use crate::exit::Exit;
use crate::output::{Output, bytes};

/// One image of a chain, as it is printed.
#[derive(Serialize)]
struct LayerReport {
    path: String,
    format: &'static str,
    subformat: &'static str,
    size_bytes: u64,
    file_size_bytes: Option<u64>,
    allocated_bytes: Option<u64>,
    logical_sector_bytes: u32,
    physical_sector_bytes: u32,
    allocation_unit_bytes: Option<u64>,
    disk_id: Option<String>,
    parent_paths: Vec<String>,
    has_pending_log: bool,
    creator: Option<String>,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    leaf: LayerReport,
    chain: Vec<LayerReport>,
}

/// Runs the verb.
pub fn run(
    path: &Path,
    with_chain: bool,
    open: &ImageOpenArgs,
    output: &Output,
) -> anyhow::Result<Exit> {
    let mode = if with_chain {
        ChainMode::Whole
    } else {
        ChainMode::LeafOnly
    };
    let image = Image::open(path, &open_options(open, mode)?)?;
    let mut layers = image.chain().iter().map(layer_report);
    let leaf = layers
        .next()
        .ok_or_else(|| anyhow::anyhow!("an image without a layer"))?;
    let report = Report {
        leaf,
        chain: layers.collect(),
    };
    output.report(&report, |report| {
        let mut text = layer_text(&report.leaf);
        for (depth, parent) in report.chain.iter().enumerate() {
            text.push_str(&format!("\nparent {}\n{}", depth + 1, layer_text(parent)));
        }
        text
    })?;
    Ok(Exit::Done)
}

fn layer_report(layer: &Layer) -> LayerReport {
    let info = layer.info();
    let metadata = std::fs::metadata(layer.path()).ok();
    LayerReport {
        path: layer.path().display().to_string(),
        format: format_name(info.format),
        subformat: subformat_name(info.subformat),
        size_bytes: info.size_bytes,
        file_size_bytes: metadata.as_ref().map(std::fs::Metadata::len),
        allocated_bytes: metadata.as_ref().and_then(allocated_bytes),
        logical_sector_bytes: info.logical_sector_bytes,
        physical_sector_bytes: info.physical_sector_bytes,
        allocation_unit_bytes: info.allocation_unit_bytes,
        disk_id: info.disk_id.map(|id| id.to_string()),
        parent_paths: info.parent_paths.clone(),
        has_pending_log: info.has_pending_log,
        creator: info.creator.clone(),
    }
}

#[cfg(unix)]
fn allocated_bytes(metadata: &std::fs::Metadata) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    metadata.blocks().checked_mul(512)
}

#[cfg(not(unix))]
fn allocated_bytes(_metadata: &std::fs::Metadata) -> Option<u64> {
    None
}

fn layer_text(layer: &LayerReport) -> String {
    let mut text = format!(
        "{}\n  format     {} ({})\n  disk       {} ({} bytes), sectors {}/{}\n",
        layer.path,
        layer.format,
        layer.subformat,
        bytes(layer.size_bytes),
        layer.size_bytes,
        layer.logical_sector_bytes,
        layer.physical_sector_bytes,
    );
    if let Some(size) = layer.file_size_bytes {
        let taken = layer.allocated_bytes.map_or(String::new(), |taken| {
            format!(", {} taken on its file system", bytes(taken))
        });
        text.push_str(&format!("  file       {}{taken}\n", bytes(size)));
    }
    if let Some(unit) = layer.allocation_unit_bytes {
        text.push_str(&format!("  unit       {}\n", bytes(unit)));
    }
    if let Some(id) = &layer.disk_id {
        text.push_str(&format!("  disk id    {id}\n"));
    }
    if let Some(creator) = &layer.creator {
        text.push_str(&format!("  creator    {creator}\n"));
    }
    for parent in &layer.parent_paths {
        text.push_str(&format!("  parent     {parent}\n"));
    }
    if layer.has_pending_log {
        text.push_str("  log        waits to be replayed; reads see it replayed\n");
    }
    text
}
