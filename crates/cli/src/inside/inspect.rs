//! `inspect`: what lies inside disks. Ends with 3 when something is not as it should be.

use engine::inside::eligibility::{RuleReport, Verdict};
use engine::inside::{InsideDisks, InspectReport, SystemReport, VolumeReport, inspect};

use crate::exit::Exit;
use crate::output::{Output, Table, bytes};

/// Looks and tells.
pub fn run(inside: &InsideDisks, output: &Output) -> anyhow::Result<Exit> {
    let report = inspect(inside)?;
    output.report(&report, text)?;
    let is_sound = report.findings.is_empty()
        && report.disks.iter().all(|disk| disk.findings.is_empty())
        && report.systems.iter().all(|system| system.damage.is_empty())
        && report
            .volumes
            .iter()
            .all(|volume| volume.findings.is_empty() && volume.missing.is_empty());
    Ok(if is_sound { Exit::Done } else { Exit::Found })
}

fn text(report: &InspectReport) -> String {
    let mut text = String::new();
    for disk in &report.disks {
        text.push_str(&format!(
            "disk {}: {}, table {}",
            disk.number,
            bytes(disk.size_bytes),
            disk.table
        ));
        if let Some(id) = &disk.id {
            text.push_str(&format!(", id {id}"));
        }
        if let Some(group) = &disk.dynamic_group {
            text.push_str(&format!(", dynamic disk of {group}"));
        }
        text.push('\n');
        for finding in &disk.findings {
            text.push_str(&format!("  found: {finding}\n"));
        }
    }
    if !report.volumes.is_empty() {
        text.push('\n');
        text.push_str(&volumes(&report.volumes));
    }
    for volume in &report.volumes {
        if let Some(inner) = volume.opened_as {
            let cipher = volume.cipher.as_deref().unwrap_or("an unknown cipher");
            let number = volume.number;
            text.push_str(&format!(
                "volume {number}: encrypted ({cipher}), opened as volume {inner}\n"
            ));
        }
        // What is locked in spite of a key is among the findings.
        if let Some(locked) = volume
            .locked
            .as_ref()
            .filter(|why| !volume.findings.contains(why))
        {
            text.push_str(&format!("volume {}: {locked}\n", volume.number));
        }
        let remarks = volume.file_system.iter().flat_map(|fs| &fs.remarks);
        for told in remarks.chain(&volume.findings) {
            text.push_str(&format!("volume {}: {told}\n", volume.number));
        }
        for missing in &volume.missing {
            text.push_str(&format!("volume {}: {missing} is missing\n", volume.number));
        }
    }
    for system in &report.systems {
        text.push('\n');
        text.push_str(&system_text(system));
    }
    if !report.eligibility.is_empty() {
        text.push('\n');
        text.push_str(&eligibility(&report.eligibility));
    }
    for finding in &report.findings {
        text.push_str(&format!("found: {finding}\n"));
    }
    text
}

/// The volumes as a table; also what `ls` shows of a disk with several.
pub fn volumes(volumes: &[VolumeReport]) -> String {
    let mut table = Table::new(
        &[
            "volume", "name", "holds", "label", "size", "free", "state", "id",
        ],
        &[0, 4, 5],
    );
    for volume in volumes {
        let fs = volume.file_system.as_ref();
        table.row(vec![
            volume.number.to_string(),
            volume.name.clone(),
            fs.map_or(volume.content, |fs| fs.kind).to_owned(),
            volume.label.clone().unwrap_or_default(),
            volume.size_bytes.map_or(String::new(), bytes),
            fs.map_or(String::new(), |fs| bytes(fs.free_bytes)),
            fs.map_or(String::new(), |fs| match &fs.why_dirty {
                Some(why) => format!("dirty: {why}"),
                None => fs.state.to_owned(),
            }),
            volume.content_id.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}

/// Whether a host can back the machine up online, rule by rule.
fn eligibility(rules: &[RuleReport]) -> String {
    let count = |verdict| rules.iter().filter(|rule| rule.verdict == verdict).count();
    let mut text = format!(
        "online backup by a host: {} rules met, {} broken, {} that the disks cannot answer\n",
        count(Verdict::Met),
        count(Verdict::Broken),
        count(Verdict::Unknown)
    );
    for rule in rules {
        text.push_str(&format!(
            "  {:<8}{:<13} {}: {}\n",
            rule.verdict.name(),
            rule.code,
            rule.rule,
            rule.measured
        ));
        if let Some(remedy) = &rule.remedy {
            text.push_str(&format!("          what to do: {remedy}\n"));
        }
    }
    text
}

fn system_text(system: &SystemReport) -> String {
    let name = system.name.as_deref().unwrap_or(system.family);
    let mut text = format!("system on volume {}: {name}", system.volume);
    if let Some(version) = &system.version {
        text.push_str(&format!(", version {version}"));
    }
    text.push('\n');
    let mut line = |what: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("  {what}: {value}\n"));
        }
    };
    line("host name", system.host_name.as_deref().unwrap_or(""));
    line("domain", system.domain.as_deref().unwrap_or(""));
    line("time zone", system.time_zone.as_deref().unwrap_or(""));
    for (letter, volume) in &system.drive_letters {
        match volume {
            Some(volume) => line(letter, &format!("volume {volume}")),
            None => line(letter, "not on these disks"),
        }
    }
    for service in &system.integration_services {
        line("integration service", service);
    }
    let shadow_copies = system.shadow_copy_service.as_deref().unwrap_or("");
    line("shadow copies", shadow_copies);
    for file in &system.page_files {
        line("page file", file);
    }
    match system.is_hibernation_enabled {
        Some(true) => line("hibernation", "enabled"),
        Some(false) => line("hibernation", "disabled"),
        None => {}
    }
    for damage in &system.damage {
        line("could not be read", damage);
    }
    text
}
