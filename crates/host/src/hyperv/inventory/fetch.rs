//! The rows of a node, class by class.

use wsman::cim::{CimInstance, CimValue};

use super::super::decode::time;
use super::super::names::{
    CONNECTION, EXCHANGE, EXCHANGE_SETTING, REFERENCE_POINT, RESOURCE, SETTINGS, STORAGE,
    SYNTHETIC_PORT, SYSTEM,
};
use super::super::node::{Node, Realm, quoted};
use crate::clock::Timestamp;
use crate::ids::VmId;
use crate::{Error, ErrorKind, Result};

/// How much of a node is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Scope {
    All,
    One(VmId),
}

/// How a class says which machine its rows belong to.
#[derive(Debug, Clone, Copy)]
enum Key {
    /// `Name` is the machine.
    Name,
    /// `VirtualSystemIdentifier` is the machine.
    System,
    /// `SystemName` is the machine.
    Device,
    /// `InstanceID` begins with it.
    Prefix,
    /// It belongs to the host.
    Host,
}

/// Rows of one node. Lists of classes that a generation does not have are empty.
#[derive(Default)]
pub(super) struct Rows {
    pub systems: Vec<CimInstance>,
    pub settings: Vec<CimInstance>,
    pub storage: Vec<CimInstance>,
    pub resources: Vec<CimInstance>,
    pub synthetic_ports: Vec<CimInstance>,
    pub emulated_ports: Vec<CimInstance>,
    pub connections: Vec<CimInstance>,
    pub switches: Vec<CimInstance>,
    pub fibre_channel: Vec<CimInstance>,
    pub memory: Vec<CimInstance>,
    pub processors: Vec<CimInstance>,
    pub security: Vec<CimInstance>,
    pub backup: Vec<CimInstance>,
    pub exchange: Vec<CimInstance>,
    pub exchange_settings: Vec<CimInstance>,
    pub shutdown: Vec<CimInstance>,
    pub heartbeat: Vec<CimInstance>,
    pub reference_points: Vec<CimInstance>,
    /// `None` where the class is not there: then nobody knows.
    pub assigned_devices: Option<Vec<CimInstance>>,
    pub problems: Vec<Error>,
}

/// What the rows of one node may weigh in memory: some twenty classes of as many machines as a host can have.
const MOST_BYTES: usize = 512 << 20;

/// What may still come from a node.
struct Budget {
    left_bytes: usize,
}

impl Budget {
    /// Takes rows in.
    fn take(&mut self, node: &Node, rows: Vec<CimInstance>) -> Result<Vec<CimInstance>> {
        for row in &rows {
            self.left_bytes = self
                .left_bytes
                .checked_sub(weight(row))
                .ok_or_else(|| too_much(node))?;
        }
        Ok(rows)
    }
}

fn too_much(node: &Node) -> Error {
    let what = format!(
        "{} tells more than {} MiB of its machines",
        node.name(),
        MOST_BYTES >> 20
    );
    Error::new(ErrorKind::Protocol, what)
}

/// About what a row takes in memory. What lies within others was bounded when it was read.
fn weight(row: &CimInstance) -> usize {
    /// A name, a value, and their places in the map.
    const EACH: usize = 96;
    let each = |value: &CimValue| match value {
        CimValue::Text(text) => text.len(),
        CimValue::Array(values) => values.len().saturating_mul(EACH),
        _ => EACH,
    };
    let properties = row.properties.iter();
    properties
        .map(|(name, value)| EACH + name.len() + each(value))
        .fold(EACH, usize::saturating_add)
}

pub(super) fn fetch(node: &Node, scope: Scope) -> Result<Rows> {
    let mut budget = Budget {
        left_bytes: MOST_BYTES,
    };
    let mut ask = |class: &str, key: Key| -> Result<Vec<CimInstance>> {
        let rows = ask(node, class, key, scope)?;
        budget.take(node, rows)
    };
    // Without these nothing could be said of a machine's data, and silence would read as "no disks".
    let mut rows = Rows {
        systems: ask(SYSTEM, Key::Name)?,
        settings: ask(SETTINGS, Key::System)?,
        storage: ask(STORAGE, Key::Prefix)?,
        resources: ask(RESOURCE, Key::Prefix)?,
        ..Rows::default()
    };
    let mut problems = Vec::new();
    let mut more = |class: &str, key: Key| match ask(class, key) {
        Ok(found) => Some(found),
        // A class that this generation does not have.
        Err(error) if is_no_class(&error) => None,
        Err(error) => {
            problems.push(error);
            None
        }
    };
    rows.synthetic_ports = more(SYNTHETIC_PORT, Key::Prefix).unwrap_or_default();
    rows.emulated_ports =
        more("Msvm_EmulatedEthernetPortSettingData", Key::Prefix).unwrap_or_default();
    rows.connections = more(CONNECTION, Key::Prefix).unwrap_or_default();
    rows.switches = more("Msvm_VirtualEthernetSwitch", Key::Host).unwrap_or_default();
    rows.fibre_channel = more("Msvm_SyntheticFcPortSettingData", Key::Prefix).unwrap_or_default();
    rows.memory = more("Msvm_MemorySettingData", Key::Prefix).unwrap_or_default();
    rows.processors = more("Msvm_ProcessorSettingData", Key::Prefix).unwrap_or_default();
    rows.security = more("Msvm_SecuritySettingData", Key::Prefix).unwrap_or_default();
    rows.backup = more("Msvm_VssComponent", Key::Device).unwrap_or_default();
    rows.exchange = more(EXCHANGE, Key::Device).unwrap_or_default();
    rows.exchange_settings = more(EXCHANGE_SETTING, Key::Prefix).unwrap_or_default();
    rows.shutdown = more("Msvm_ShutdownComponent", Key::Device).unwrap_or_default();
    rows.heartbeat = more("Msvm_HeartbeatComponent", Key::Device).unwrap_or_default();
    rows.reference_points = more(REFERENCE_POINT, Key::System).unwrap_or_default();
    rows.assigned_devices = more("Msvm_PciExpressSettingData", Key::Prefix);
    rows.problems = problems;
    Ok(rows)
}

/// Codes by which a host says that it has no such class: refused as a filter, or by WMI itself.
const NO_CLASS: [u32; 2] = [2_150_858_778, 0x8004_1010];

fn is_no_class(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || error.code().is_some_and(|code| NO_CLASS.contains(&code.0))
}

/// What disks are put together from, of one machine.
pub(super) fn fetch_disks(node: &Node, vm: VmId) -> Result<Rows> {
    let scope = Scope::One(vm);
    Ok(Rows {
        storage: ask(node, STORAGE, Key::Prefix, scope)?,
        resources: ask(node, RESOURCE, Key::Prefix, scope)?,
        ..Rows::default()
    })
}

fn ask(node: &Node, class: &str, key: Key, scope: Scope) -> Result<Vec<CimInstance>> {
    let condition = match scope {
        Scope::All => None,
        Scope::One(vm) => match key {
            Key::Name => Some(format!("Name = {}", quoted(&vm.to_string()))),
            Key::System => Some(format!(
                "VirtualSystemIdentifier = {}",
                quoted(&vm.to_string())
            )),
            Key::Device => Some(format!("SystemName = {}", quoted(&vm.to_string()))),
            Key::Prefix => Some(format!("InstanceID LIKE 'Microsoft:{vm}%'")),
            Key::Host => None,
        },
    };
    node.rows(Realm::Virtualization, class, condition.as_deref())
}

/// Number of the build of the node's Windows; `None` when it does not tell.
pub(super) fn build_of(node: &Node) -> Option<u32> {
    let rows = node
        .rows(Realm::Windows, "Win32_OperatingSystem", None)
        .ok()?;
    rows.first()?.opt_u32("BuildNumber").ok().flatten()
}

/// The node's clock; `None` when it does not tell.
pub(in crate::hyperv) fn clock_of(node: &Node) -> Option<Timestamp> {
    let rows = node
        .query(
            Realm::Windows,
            "SELECT LocalDateTime FROM Win32_OperatingSystem",
        )
        .ok()?;
    time(rows.first()?, "LocalDateTime")
}
