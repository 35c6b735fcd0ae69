//! The methods of the fake host: what each changes when its job ends.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use host::Clock;
use host::hyperv::CimClient;
use host::ids::VmId;
use wsman::cim::{CimInstance, CimPath, CimValue, embedded};
use wsman::client::Enumeration;
use wsman::message::{Fault, FaultCode};

use super::fake::{
    Act, Effect, FakeNode, Rows, answer, destroy_snapshot, item, remove_machine, row,
    snapshot_rows, texts,
};

fn key_of(inputs: &[(&str, CimValue)], name: &str, key: &str) -> String {
    match inputs.iter().find(|it| it.0 == name) {
        Some((_, CimValue::Reference(path))) => path.key(key).expect("the key"),
        other => panic!("{name} is {other:?}"),
    }
}

fn text_of(inputs: &[(&str, CimValue)], name: &str) -> String {
    match inputs.iter().find(|it| it.0 == name) {
        Some((_, value)) => value.to_wire_text().expect("a text"),
        None => String::new(),
    }
}

fn embedded_of(inputs: &[(&str, CimValue)], name: &str) -> Vec<CimInstance> {
    let values = match inputs.iter().find(|it| it.0 == name) {
        Some((_, CimValue::Array(values))) => values.clone(),
        Some((_, value)) => vec![value.clone()],
        None => Vec::new(),
    };
    values
        .iter()
        .filter_map(CimValue::to_wire_text)
        .filter(|text| !text.is_empty())
        .map(|text| embedded::read(&text).expect("an instance"))
        .collect()
}

/// Takes over what settings change, as texts: that is how they come back off the wire.
fn merge_into(row: &mut CimInstance, settings: &CimInstance) {
    for (name, value) in &settings.properties {
        row.set(name.clone(), value.clone());
    }
}

impl CimClient for FakeNode {
    fn get(&self, path: &CimPath) -> wsman::Result<CimInstance> {
        self.answered()?;
        let mut rows = self.lock();
        let class = path.class.as_str().to_owned();
        if class == "Msvm_ConcreteJob" {
            let id = path.key("InstanceID").unwrap_or_default();
            self.look_at_job(&mut rows, &id);
        }
        let is_it = |row: &&CimInstance| {
            path.keys.keys().all(|key| {
                let wanted = path.key(key).unwrap_or_default();
                row.text_ref(key)
                    .is_some_and(|it| it.eq_ignore_ascii_case(&wanted))
            })
        };
        let found = rows.of(&class).iter().find(is_it).cloned();
        found.ok_or_else(|| Fault::new(FaultCode::DestinationUnreachable).into_error())
    }

    fn for_each(
        &self,
        enumeration: &Enumeration,
        each: &mut dyn FnMut(CimInstance) -> ControlFlow<()>,
    ) -> wsman::Result<()> {
        for row in self.collect(enumeration)? {
            if each(row).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn collect(&self, enumeration: &Enumeration) -> wsman::Result<Vec<CimInstance>> {
        self.answered()?;
        match enumeration {
            Enumeration::Query { namespace, wql } => {
                self.lock().calls.push(format!("query {wql}"));
                self.select(namespace, wql)
            }
            other => panic!("the driver does not ask {other:?}"),
        }
    }

    #[expect(clippy::too_many_lines, reason = "a table: one arm for each method")]
    fn invoke(
        &self,
        path: &CimPath,
        method: &str,
        inputs: &[(&str, CimValue)],
    ) -> wsman::Result<CimInstance> {
        self.answered()?;
        let mut rows = self.lock();
        rows.calls.push(method.to_owned());
        let effect: Effect = match method {
            "CreateSnapshot" => {
                let vm: VmId = key_of(inputs, "AffectedSystem", "Name")
                    .parse()
                    .expect("an id");
                let kind = if text_of(inputs, "SnapshotType") == "32768" {
                    "Microsoft:Hyper-V:Snapshot:Recovery"
                } else {
                    "Microsoft:Hyper-V:Snapshot:Realized"
                };
                Box::new(move |node, rows| {
                    let guid = node.next_guid();
                    snapshot_rows(
                        rows,
                        vm,
                        &guid,
                        "名前 - (2026/05/02)",
                        kind,
                        node.clock.now().0,
                    );
                    let id = format!("Microsoft:{guid}");
                    vec![
                        CimPath::new("root/virtualization/v2", "Msvm_VirtualSystemSettingData")
                            .with("InstanceID", id),
                    ]
                })
            }
            "DestroySnapshot" | "ConvertToReferencePoint" => {
                let snapshot = key_of(inputs, "AffectedSnapshot", "InstanceID");
                let is_converted = method == "ConvertToReferencePoint";
                let row = rows
                    .find("Msvm_VirtualSystemSettingData", &snapshot)
                    .cloned();
                let Some(row) = row else { return Ok(answer(4)) };
                let vm = row.text("VirtualSystemIdentifier").expect("a machine");
                Box::new(move |node, rows| {
                    let disks: Vec<String> = rows
                        .of("Msvm_StorageAllocationSettingData")
                        .iter()
                        .filter_map(|it| {
                            Some(
                                it.text_ref("InstanceID")?
                                    .strip_prefix(&format!("Microsoft:{vm}"))?
                                    .to_owned(),
                            )
                        })
                        .map(|tail| format!("Microsoft:{vm}{tail}"))
                        .collect();
                    destroy_snapshot(rows, &vm, &snapshot);
                    if !is_converted {
                        return Vec::new();
                    }
                    let id = format!("Microsoft:{}", node.next_guid());
                    let limits: Vec<String> = disks
                        .iter()
                        .enumerate()
                        .map(|(place, _)| format!("rct:{id}:{place}"))
                        .collect();
                    rows.known_limits.extend(limits.iter().cloned());
                    let point = row_of_point(&id, &vm, &disks, &limits);
                    rows.of("Msvm_VirtualSystemReferencePoint").push(point);
                    vec![
                        CimPath::new("root/virtualization/v2", "Msvm_VirtualSystemReferencePoint")
                            .with("InstanceID", id),
                    ]
                })
            }
            "DestroyReferencePoint" => {
                let id = key_of(inputs, "AffectedReferencePoint", "InstanceID");
                Box::new(move |_, rows| {
                    rows.of("Msvm_VirtualSystemReferencePoint")
                        .retain(|it| it.text_ref("InstanceID") != Some(&id));
                    Vec::new()
                })
            }
            "ModifySystemSettings" | "ModifyDiskMergeSettings" | "ModifyResourceSettings" => {
                let parameter = match method {
                    "ModifySystemSettings" => "SystemSettings",
                    "ModifyDiskMergeSettings" => "SettingData",
                    _ => "ResourceSettings",
                };
                if method == "ModifySystemSettings" && self.refuse_marks.load(Ordering::SeqCst) {
                    return Ok(answer(32_769));
                }
                let changes = embedded_of(inputs, parameter);
                Box::new(move |_, rows| {
                    for settings in &changes {
                        let id = settings.text("InstanceID").expect("an id");
                        let class = settings.class.as_str().to_owned();
                        if let Some(row) = rows.find(&class, &id) {
                            merge_into(row, settings);
                        }
                    }
                    Vec::new()
                })
            }
            "AddKvpItems" | "RemoveKvpItems" => {
                let vm = key_of(inputs, "TargetSystem", "Name");
                let items = embedded_of(inputs, "DataItems");
                let is_added = method == "AddKvpItems";
                Box::new(move |_, rows| {
                    change_items(rows, &vm, &items, is_added);
                    Vec::new()
                })
            }
            "RequestStateChange" if path.class.as_str() == "Msvm_ComputerSystem" => {
                let vm: VmId = path.key("Name").expect("a name").parse().expect("an id");
                let state = text_of(inputs, "RequestedState");
                Box::new(move |node, rows| {
                    // Memory takes its time to be written and read.
                    node.clock.advance(Duration::from_secs(2));
                    rows.system(vm).set("EnabledState", state);
                    Vec::new()
                })
            }
            "RequestStateChange" => return Ok(answer(0)),
            "GetErrorEx" => return Ok(answer(0)),
            "InitiateShutdown" => {
                let vm: VmId = path
                    .key("SystemName")
                    .expect("a name")
                    .parse()
                    .expect("an id");
                rows.system(vm).set("EnabledState", "3");
                return Ok(answer(0));
            }
            "GetVirtualHardDiskSettingData" => {
                let text = format!(
                    "<INSTANCE CLASSNAME=\"Msvm_VirtualHardDiskSettingData\">\
                     <PROPERTY NAME=\"VirtualDiskId\" TYPE=\"string\"><VALUE>77777777-0000-4000-8000-00000000000{}</VALUE></PROPERTY>\
                     <PROPERTY NAME=\"MaxInternalSize\" TYPE=\"uint64\"><VALUE>{}</VALUE></PROPERTY></INSTANCE>",
                    text_of(inputs, "Path").len() % 10,
                    40_u64 << 30
                );
                return Ok(answer(0).with("SettingData", text));
            }
            "GetVirtualHardDiskState" => {
                let text = "<INSTANCE CLASSNAME=\"Msvm_VirtualHardDiskState\"><PROPERTY NAME=\"FileSize\" TYPE=\"uint64\"><VALUE>4194304</VALUE></PROPERTY></INSTANCE>";
                return Ok(answer(0).with("State", text));
            }
            "GetVirtualDiskChanges" => return self.changes(&mut rows, inputs),
            "DestroySystem" => {
                let vm = key_of(inputs, "AffectedSystem", "Name");
                Box::new(move |_, rows| {
                    remove_machine(rows, &vm);
                    Vec::new()
                })
            }
            "ExportSystemDefinition" => {
                let vm = key_of(inputs, "ComputerSystem", "Name");
                let settings = embedded_of(inputs, "ExportSettingData").remove(0);
                Box::new(move |_, rows| {
                    if settings.bool("CopyVmStorage").expect("a flag") {
                        return Vec::new();
                    }
                    let id = format!("Microsoft:{vm}\\DeviceSpecificData");
                    rows.find("Msvm_DiskMergeSettingData", &id)
                        .expect("settings")
                        .set("EnabledState", "0");
                    Vec::new()
                })
            }
            "ApplySnapshot" | "ValidatePlannedSystem" => Box::new(|_, _| Vec::new()),
            _ => return super::fake_definition::invoke(self, &mut rows, path, method, inputs),
        };
        self.begin(&mut rows, method, effect)
    }

    fn put(&self, path: &CimPath, instance: &CimInstance) -> wsman::Result<CimInstance> {
        self.answered()?;
        let mut rows = self.lock();
        rows.calls.push("put".to_owned());
        let name = path.key("Name").unwrap_or_default();
        let found = rows
            .of(path.class.as_str())
            .iter_mut()
            .find(|it| it.text_ref("Name") == Some(name.as_str()));
        let row =
            found.ok_or_else(|| Fault::new(FaultCode::DestinationUnreachable).into_error())?;
        for (name, value) in &instance.properties {
            row.set(name.clone(), value.to_wire_text().expect("a text"));
        }
        Ok(row.clone())
    }
}

impl FakeNode {
    /// For methods that live elsewhere.
    pub fn start(
        &self,
        rows: &mut Rows,
        method: &str,
        effect: impl FnOnce(&FakeNode, &mut Rows) -> Vec<CimPath> + Send + 'static,
    ) -> wsman::Result<CimInstance> {
        self.begin(rows, method, Box::new(effect))
    }

    pub fn fresh_guid(&self) -> String {
        self.next_guid()
    }

    fn changes(&self, rows: &mut Rows, inputs: &[(&str, CimValue)]) -> wsman::Result<CimInstance> {
        let act = rows
            .acts
            .get_mut("GetVirtualDiskChanges")
            .and_then(VecDeque::pop_front);
        match act {
            Some(Act::Return(code)) => return Ok(answer(code)),
            Some(Act::Cut { .. }) => {
                return Err(wsman::Error::new(wsman::ErrorKind::Io, "the line was cut"));
            }
            _ => {}
        }
        if !rows.known_limits.contains(&text_of(inputs, "LimitId")) {
            return Ok(answer(32_773));
        }
        let offset: u64 = text_of(inputs, "ByteOffset").parse().expect("a number");
        let length: u64 = text_of(inputs, "ByteLength").parse().expect("a number");
        if length > rows.change_window_most {
            return Err(Fault::new(FaultCode::EncodingLimit).into_error());
        }
        let end = offset + length;
        let inside = rows.changes.iter().filter_map(|(start, size)| {
            let (from, to) = ((*start).max(offset), (start + size).min(end));
            (from < to).then(|| (from.to_string(), (to - from).to_string()))
        });
        let (offsets, lengths): (Vec<String>, Vec<String>) = inside.unzip();
        let as_texts =
            |values: Vec<String>| CimValue::Array(values.into_iter().map(CimValue::Text).collect());
        Ok(answer(0)
            .with("ChangedByteOffsets", as_texts(offsets))
            .with("ChangedByteLengths", as_texts(lengths))
            .with("ProcessedByteLength", length.to_string()))
    }
}

fn row_of_point(id: &str, vm: &str, disks: &[String], limits: &[String]) -> CimInstance {
    let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
    let limits: Vec<&str> = limits.iter().map(String::as_str).collect();
    row(
        "Msvm_VirtualSystemReferencePoint",
        &[
            ("InstanceID", id),
            ("VirtualSystemIdentifier", vm),
            ("ReferencePointType", "2"),
        ],
    )
    .with("VirtualDiskIdentifiers", texts(&disks))
    .with("ResilientChangeTrackingIdentifiers", texts(&limits))
}

fn change_items(rows: &mut Rows, vm: &str, items: &[CimInstance], is_added: bool) {
    let id = format!("Microsoft:{vm}\\2A34B1C2-FD73-4043-8A5B-DD2159BC743F");
    let settings = rows
        .find("Msvm_KvpExchangeComponentSettingData", &id)
        .expect("settings");
    let mut held = settings.texts("HostOnlyItems").expect("texts");
    for it in items {
        let name = it.text("Name").expect("a name");
        held.retain(|text| embedded::read(text).expect("an item").text_ref("Name") != Some(&name));
        if is_added {
            held.push(item(&name, &it.text("Data").expect("a value")));
        }
    }
    let held: Vec<&str> = held.iter().map(String::as_str).collect();
    settings.set("HostOnlyItems", texts(&held));
}
