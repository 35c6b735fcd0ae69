//! `hikae image serve`: images of any format, with their chains, read-only over NBD and as files.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use block::ReadAt;
use vdisk::vhdx::{CreateOptions, IdSource, VhdxView};

use super::convert::system_ids;
use super::{format_name, open_image};
use crate::args::ServeImageArgs;
use crate::exit::{Exit, not_possible};
use crate::output::Output;
use crate::progress::cancellation;
use crate::serving::{self, Guarded, Offer};

/// Runs the verb.
pub fn run(arguments: &ServeImageArgs, output: &Output) -> anyhow::Result<Exit> {
    let ids = system_ids()?;
    let mut offers = Vec::new();
    for path in &arguments.images {
        offers.push(offer(path, arguments, &ids)?);
    }
    let guarded = Guarded {
        protected_from_gc: None,
        check: &|| Ok(()),
    };
    serving::run(offers, &arguments.what, &guarded, &cancellation(), output)?;
    Ok(Exit::Done)
}

fn offer(
    path: &Path,
    arguments: &ServeImageArgs,
    ids: &IdSource,
) -> anyhow::Result<Offer<'static>> {
    let image = open_image(path, &arguments.open)?;
    let info = image.info();
    let name = path
        .file_stem()
        .map(|name| name.to_string_lossy().into_owned())
        .ok_or_else(|| not_possible(format!("{} has no name", path.display())))?;
    let modified = std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH);
    let disk: Arc<dyn ReadAt> = Arc::new(image);
    let ids = ids.clone();
    let mut description = format!("{} ({})", path.display(), format_name(info.format));
    description.push_str(", read-only");
    let vhdx = move |over: Arc<dyn ReadAt>| -> anyhow::Result<VhdxView> {
        let disk_id = info.disk_id.unwrap_or_else(|| ids.disk_id());
        let mut options = CreateOptions::new(over.size_bytes(), disk_id, ids);
        options.logical_sector_bytes = info.logical_sector_bytes;
        let source = Arc::clone(&over);
        let mut extents = |offset, limit_bytes| source.extent_at(offset, limit_bytes);
        Ok(VhdxView::open(over, &options, &mut extents)?)
    };
    Ok(Offer {
        name,
        other_name: None,
        description,
        root: None,
        disk,
        modified,
        vhdx: Box::new(vhdx),
    })
}
