//! Faults by name: those that wait for an operation, those of the wire, and what a disaster does at once.
//!
//! | group | what it is |
//! |---|---|
//! | armed | a [`FaultKind`] of the estate, for a VM, a node, after so many operations, after a time, so often |
//! | wire | a [`WireFault`] on the way to a node, after so many requests |
//! | at once | nodes that lose power, come back, are drained; volumes that are full, gone, redirected, moved |
//!
//! **Invariants.** What a kind does not understand is refused, so that no fault is weaker or wider than was asked for.

use std::time::Duration;

use wsman::message::FaultCode;
use wsman::transport::WireFault;

use super::desk::ControlDesk;
use super::messages::{
    ArmedFault, ClearReport, FaultKindReport, FaultRequest, FaultsReport, InjectReport, StruckFault,
};
use crate::estate::{
    Drain, Estate, Fault, FaultKind, HostName, HostState, NodeState, Repeat, Trigger, VolumeId,
    VolumeKind, VolumeState,
};
use crate::{Error, Result};

/// Codes that the wire can answer with.
const CODES: &[FaultCode] = &[
    FaultCode::InternalError,
    FaultCode::AccessDenied,
    FaultCode::QuotaLimit,
    FaultCode::Concurrency,
    FaultCode::TimedOut,
    FaultCode::InvalidEnumerationContext,
];
/// More requests than this are not remembered as faulty.
const TIMES_MAX: u32 = 100_000;
/// Slower answers are none.
const SLOW_MAX: Duration = Duration::from_secs(3600);
const SLOW: Duration = Duration::from_secs(5);

/// What can be said of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Vm,
    Node,
    Volume,
    After,
    In,
    Times,
    Lasts,
    Leave,
    Fault,
}

impl Takes {
    fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Node => "node",
            Self::Volume => "volume",
            Self::After => "after",
            Self::In => "in",
            Self::Times => "times",
            Self::Lasts => "lasts",
            Self::Leave => "leave",
            Self::Fault => "fault",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    LoginExpires,
    CutBefore,
    CutInside,
    CutAfter,
    Slow,
    Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    NodeOff,
    NodeOn,
    NodeDrain,
    NodePause,
    NodeResume,
    VolumeFull,
    VolumeState(VolumeState),
    VolumeMoves,
}

#[derive(Debug, Clone, Copy)]
enum Doing {
    Arm(FaultKind),
    Wire(Wire),
    Act(Act),
}

struct Kind {
    name: &'static str,
    takes: &'static [Takes],
    help: &'static str,
    doing: Doing,
}

const ARMED: &[Takes] = &[
    Takes::Vm,
    Takes::Node,
    Takes::After,
    Takes::In,
    Takes::Times,
];
const ON_WIRE: &[Takes] = &[Takes::Node, Takes::After, Takes::Times];

/// Those of the wire and those that happen at once.
const OTHERS: &[Kind] = &[
    wire(
        "wire-login-expires",
        ON_WIRE,
        "the wire answers 401, as if the login had expired",
        Wire::LoginExpires,
    ),
    wire(
        "wire-cut-before",
        ON_WIRE,
        "the connection is closed before the host sees the request",
        Wire::CutBefore,
    ),
    wire(
        "wire-cut-inside",
        ON_WIRE,
        "the host acts, the connection breaks in the middle of the answer",
        Wire::CutInside,
    ),
    wire(
        "wire-cut-after",
        ON_WIRE,
        "the host acts, the connection is closed without an answer",
        Wire::CutAfter,
    ),
    wire(
        "wire-slow",
        &[Takes::Node, Takes::After, Takes::Times, Takes::Lasts],
        "the host acts, the answer comes later (5s of our clock, or --lasts)",
        Wire::Slow,
    ),
    wire(
        "wire-fault",
        &[Takes::Node, Takes::After, Takes::Times, Takes::Fault],
        "a SOAP fault that has nothing to do with the request (InternalError, or --fault AccessDenied, QuotaLimit, Concurrency, TimedOut, InvalidEnumerationContext)",
        Wire::Fault,
    ),
    act(
        "node-off",
        &[Takes::Node],
        "now: a node loses power; what it ran fails over",
        Act::NodeOff,
    ),
    act(
        "node-on",
        &[Takes::Node],
        "now: a node that is down is started; it answers two minutes of the lab's clock later",
        Act::NodeOn,
    ),
    act(
        "node-drain",
        &[Takes::Node],
        "now: a cluster's node is paused, its roles move away",
        Act::NodeDrain,
    ),
    act(
        "node-pause",
        &[Takes::Node],
        "now: a cluster's node is paused, its roles stay",
        Act::NodePause,
    ),
    act(
        "node-resume",
        &[Takes::Node],
        "now: a paused node takes part again",
        Act::NodeResume,
    ),
    act(
        "volume-full",
        &[Takes::Volume, Takes::Node, Takes::Leave],
        "now: a volume has no room left, or that of --leave",
        Act::VolumeFull,
    ),
    act(
        "volume-gone",
        &[Takes::Volume, Takes::Node],
        "now: a volume cannot be reached",
        Act::VolumeState(VolumeState::NoAccess),
    ),
    act(
        "volume-redirected",
        &[Takes::Volume, Takes::Node],
        "now: a shared volume is reached through its coordinator alone",
        Act::VolumeState(VolumeState::Redirected),
    ),
    act(
        "volume-maintenance",
        &[Takes::Volume, Takes::Node],
        "now: a shared volume is in maintenance",
        Act::VolumeState(VolumeState::Maintenance),
    ),
    act(
        "volume-back",
        &[Takes::Volume, Takes::Node],
        "now: a volume is as it should be again, with its room",
        Act::VolumeState(VolumeState::Online),
    ),
    act(
        "volume-moves",
        &[Takes::Volume, Takes::Node],
        "now: --node becomes the coordinator of a shared volume",
        Act::VolumeMoves,
    ),
];

const fn wire(name: &'static str, takes: &'static [Takes], help: &'static str, wire: Wire) -> Kind {
    Kind {
        name,
        takes,
        help,
        doing: Doing::Wire(wire),
    }
}

const fn act(name: &'static str, takes: &'static [Takes], help: &'static str, act: Act) -> Kind {
    Kind {
        name,
        takes,
        help,
        doing: Doing::Act(act),
    }
}

fn kinds() -> impl Iterator<Item = Kind> {
    let armed = FaultKind::ALL.iter().map(|kind| Kind {
        name: kind.name(),
        takes: ARMED,
        help: kind.help(),
        doing: Doing::Arm(*kind),
    });
    armed.chain(OTHERS.iter().map(|kind| Kind { ..*kind }))
}

/// Every kind of fault that can be asked for.
pub fn fault_kinds() -> Vec<FaultKindReport> {
    let report = |kind: Kind| FaultKindReport {
        kind: kind.name.to_owned(),
        takes: kind.takes.iter().map(|it| it.name().to_owned()).collect(),
        help: kind.help.to_owned(),
    };
    kinds().map(report).collect()
}

impl FaultRequest {
    fn given(&self) -> Vec<Takes> {
        let mut given = Vec::new();
        let mut note = |is_there: bool, what: Takes| {
            if is_there {
                given.push(what);
            }
        };
        note(self.vm.is_some(), Takes::Vm);
        note(self.node.is_some(), Takes::Node);
        note(self.volume.is_some(), Takes::Volume);
        note(self.after.is_some(), Takes::After);
        note(self.in_ms.is_some(), Takes::In);
        note(self.times.is_some(), Takes::Times);
        note(self.lasts_ms.is_some(), Takes::Lasts);
        note(self.leave_bytes.is_some(), Takes::Leave);
        note(self.fault.is_some(), Takes::Fault);
        given
    }
}

impl ControlDesk {
    pub(super) fn faults(&self) -> FaultsReport {
        let struck = self.parts.estate.read(|estate| {
            estate
                .faults()
                .struck()
                .iter()
                .map(|(time, kind)| StruckFault {
                    time: time.to_string(),
                    kind: kind.name().to_owned(),
                })
                .collect()
        });
        FaultsReport {
            kinds: fault_kinds(),
            armed: self.armed(),
            struck,
        }
    }

    /// All faults to come: the estate's, then each node's wire.
    pub(super) fn armed(&self) -> Vec<ArmedFault> {
        let mut armed: Vec<ArmedFault> = self.parts.estate.read(|estate| {
            let planned = estate.faults().planned().iter();
            planned.map(|fault| armed_of(estate, fault)).collect()
        });
        for (host, plan) in &self.parts.plans {
            let first = armed.len();
            for (wait, fault) in plan.planned() {
                let kind = wire_name(fault);
                let is_again = wait == 0
                    && armed
                        .get(first..)
                        .and_then(<[ArmedFault]>::last)
                        .is_some_and(|it| it.kind == kind);
                match armed.last_mut().filter(|_| is_again) {
                    Some(last) => last.times = last.times.saturating_add(1),
                    None => armed.push(ArmedFault {
                        kind,
                        vm: None,
                        node: Some(host.to_string()),
                        when: when_text(wait),
                        times: 1,
                    }),
                }
            }
        }
        armed
    }

    pub(super) fn inject(&self, asked: &FaultRequest) -> Result<InjectReport> {
        let kind = kinds()
            .find(|kind| kind.name.eq_ignore_ascii_case(&asked.kind))
            .ok_or_else(|| {
                Error::not_found(format!("there is no kind of fault called {}", asked.kind))
            })?;
        if let Some(stranger) = asked.given().iter().find(|it| !kind.takes.contains(it)) {
            let takes: Vec<String> = kind
                .takes
                .iter()
                .map(|it| format!("--{}", it.name()))
                .collect();
            return Err(Error::invalid(format!(
                "--{} means nothing to {}: it takes {}",
                stranger.name(),
                kind.name,
                takes.join(", ")
            )));
        }
        let told = match kind.doing {
            Doing::Arm(what) => self.arm(what, asked)?,
            Doing::Wire(what) => self.arm_wire(what, asked)?,
            Doing::Act(what) => self.act(what, asked)?,
        };
        Ok(InjectReport {
            kind: kind.name.to_owned(),
            told,
            armed: self.armed(),
        })
    }

    fn arm(&self, kind: FaultKind, asked: &FaultRequest) -> Result<String> {
        let vm = asked.vm.as_deref().map(|it| self.place(it)).transpose()?;
        let host = asked.node.as_deref().map(|it| self.find_host(it));
        let host = host.transpose()?;
        self.parts.estate.write(|estate| {
            let trigger = match (asked.after, asked.in_ms) {
                (None, None) => Trigger::Next,
                (Some(after), None) => Trigger::AfterOperations(after),
                (None, Some(ms)) => Trigger::At(estate.now().after(Duration::from_millis(ms))),
                (Some(_), Some(_)) => {
                    return Err(Error::invalid("either --after or --in, not both"));
                }
            };
            let repeat = match asked.times {
                None => Repeat::Times(1),
                Some(0) => Repeat::Always,
                Some(times) => Repeat::Times(times),
            };
            let mut fault = Fault::next(kind).when(trigger).repeated(repeat);
            if let Some((_, id)) = vm {
                fault = fault.of_vm(id);
            }
            if let Some(host) = host {
                fault = fault.on_host(host);
            }
            let is_scheduled =
                kind == FaultKind::NodeCrashes && asked.in_ms.is_some() && fault.host.is_some();
            estate.inject(fault);
            Ok(if is_scheduled {
                "Scheduled: it happens then, and is not taken back by clear.".to_owned()
            } else {
                "Armed: it waits for an operation to strike.".to_owned()
            })
        })
    }

    fn arm_wire(&self, kind: Wire, asked: &FaultRequest) -> Result<String> {
        let times = match asked.times {
            None => 1,
            Some(times @ 1..=TIMES_MAX) => times,
            Some(_) => {
                return Err(Error::invalid(format!(
                    "a fault of the wire comes 1 to {TIMES_MAX} times"
                )));
            }
        };
        let lasts = asked.lasts_ms.map_or(SLOW, Duration::from_millis);
        if lasts > SLOW_MAX {
            return Err(Error::invalid(format!(
                "at most {} s slow",
                SLOW_MAX.as_secs()
            )));
        }
        let fault = match kind {
            Wire::LoginExpires => WireFault::Unauthorized,
            Wire::CutBefore => WireFault::CloseBefore,
            Wire::CutInside => WireFault::CloseInside,
            Wire::CutAfter => WireFault::CloseAfter,
            Wire::Slow => WireFault::Slow(lasts),
            Wire::Fault => WireFault::Refused(code(asked.fault.as_deref())?),
        };
        let only = asked.node.as_deref().map(|it| self.find_host(it));
        let only = only.transpose()?;
        let mut nodes = Vec::new();
        for (host, plan) in &self.parts.plans {
            if only.as_ref().is_none_or(|only| only == host) {
                plan.repeat(asked.after.unwrap_or(0), times, fault);
                nodes.push(host.to_string());
            }
        }
        Ok(format!(
            "Armed on the wire of {}: it waits for a request.",
            nodes.join(", ")
        ))
    }

    fn act(&self, act: Act, asked: &FaultRequest) -> Result<String> {
        let node = asked.node.as_deref().map(|it| self.find_host(it));
        let node = node.transpose()?;
        if let Act::VolumeFull | Act::VolumeState(_) | Act::VolumeMoves = act {
            let named = asked.volume.as_deref();
            let named = named.ok_or_else(|| Error::invalid("say which: --volume PATH"))?;
            return self.parts.estate.write(|estate| {
                let id = find_volume(estate, named, node.as_ref())?;
                act_on_volume(estate, act, id, node.as_ref(), asked.leave_bytes)
            });
        }
        let node = node.ok_or_else(|| Error::invalid("say which: --node NAME"))?;
        self.parts
            .estate
            .write(|estate| act_on_node(estate, act, &node))
    }

    pub(super) fn clear_faults(&self) -> Result<ClearReport> {
        let wire = self.parts.plans.values().map(|plan| plan.clear()).sum();
        self.parts.estate.write(|estate| {
            let armed = estate.faults().planned().len();
            estate.clear_faults();
            let ill: Vec<(VolumeId, String)> = estate
                .storage()
                .volumes()
                .iter()
                .filter(|it| it.state != VolumeState::Online || it.filled_bytes > 0)
                .map(|it| (it.id, it.path()))
                .collect();
            for (id, _) in &ill {
                estate.set_volume_state(*id, VolumeState::Online)?;
                estate.fill_volume(*id, 0)?;
            }
            let is_away = |host: &&crate::estate::Host| {
                let node = estate
                    .cluster_of(&host.name)
                    .and_then(|it| it.nodes.get(&host.name));
                host.state == HostState::Down || node.is_some_and(|it| it.state != NodeState::Up)
            };
            Ok(ClearReport {
                estate: armed,
                wire,
                volumes: ill.into_iter().map(|(_, path)| path).collect(),
                nodes_away: estate
                    .hosts()
                    .filter(is_away)
                    .map(|it| it.name.to_string())
                    .collect(),
            })
        })
    }
}

fn armed_of(estate: &Estate, fault: &Fault) -> ArmedFault {
    let vm = fault.vm.map(|id| {
        let named = estate.systems().find(|vm| vm.id == id);
        named.map_or_else(|| id.to_string(), |vm| vm.settings.name.clone())
    });
    ArmedFault {
        kind: fault.kind.name().to_owned(),
        vm,
        node: fault.host.as_ref().map(ToString::to_string),
        when: match fault.trigger {
            Trigger::Next => when_text(0),
            Trigger::AfterOperations(left) => when_text(left),
            Trigger::At(at) => format!("from {at}"),
        },
        times: match fault.repeat {
            Repeat::Always => 0,
            Repeat::Times(times) => times,
        },
    }
}

fn when_text(after: u32) -> String {
    match after {
        0 => "next".to_owned(),
        after => format!("after {after}"),
    }
}

fn wire_name(fault: WireFault) -> String {
    match fault {
        WireFault::Unauthorized => "wire-login-expires".to_owned(),
        WireFault::CloseBefore => "wire-cut-before".to_owned(),
        WireFault::CloseInside => "wire-cut-inside".to_owned(),
        WireFault::CloseAfter => "wire-cut-after".to_owned(),
        WireFault::Slow(_) => "wire-slow".to_owned(),
        WireFault::Refused(code) => format!("wire-fault {code:?}"),
    }
}

fn code(named: Option<&str>) -> Result<FaultCode> {
    let Some(named) = named else {
        return Ok(FaultCode::InternalError);
    };
    let name = |code: &FaultCode| format!("{code:?}");
    let found = CODES
        .iter()
        .find(|code| name(code).eq_ignore_ascii_case(named));
    found.copied().ok_or_else(|| {
        let names: Vec<String> = CODES.iter().map(name).collect();
        Error::not_found(format!("no fault {named}: one of {}", names.join(", ")))
    })
}

/// The one volume of a path, as a node sees it if one is named.
fn find_volume(estate: &Estate, named: &str, node: Option<&HostName>) -> Result<VolumeId> {
    let plain = |path: &str| {
        path.replace('/', "\\")
            .trim_end_matches('\\')
            .to_lowercase()
    };
    let is_seen = |kind: &VolumeKind, node: &HostName| match kind {
        VolumeKind::Local { host, .. } => host == node,
        VolumeKind::Csv { cluster, .. } => estate
            .cluster_of(node)
            .is_some_and(|it| it.name == *cluster),
        VolumeKind::Share { .. } => true,
    };
    let found: Vec<VolumeId> = estate
        .storage()
        .volumes()
        .iter()
        .filter(|it| plain(&it.path()) == plain(named))
        .filter(|it| node.is_none_or(|node| is_seen(&it.kind, node)))
        .map(|it| it.id)
        .collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(Error::not_found(format!("there is no volume {named}"))),
        _ => Err(Error::invalid(format!(
            "several hosts have a volume {named}: say whose with --node"
        ))),
    }
}

fn act_on_volume(
    estate: &mut Estate,
    act: Act,
    id: VolumeId,
    node: Option<&HostName>,
    leave_bytes: Option<u64>,
) -> Result<String> {
    let volume = estate.storage().volume(id);
    let volume = volume.ok_or_else(|| Error::not_found("the volume is gone"))?;
    let (path, filled, is_shared) = (
        volume.path(),
        volume.filled_bytes,
        matches!(volume.kind, VolumeKind::Csv { .. }),
    );
    match act {
        Act::VolumeFull => {
            let free = estate.storage().free_bytes(id).saturating_add(filled);
            let leave = leave_bytes.unwrap_or(0);
            estate.fill_volume(id, free.saturating_sub(leave))?;
            Ok(format!("{path} has {} bytes left.", leave.min(free)))
        }
        Act::VolumeState(VolumeState::Online) => {
            estate.set_volume_state(id, VolumeState::Online)?;
            estate.fill_volume(id, 0)?;
            Ok(format!("{path} is as it should be."))
        }
        Act::VolumeState(state) => {
            if state != VolumeState::NoAccess && !is_shared {
                return Err(Error::invalid(format!("{path} is no shared volume")));
            }
            estate.set_volume_state(id, state)?;
            Ok(format!("{path} is not as it should be: {state:?}."))
        }
        _ => {
            let node = node.ok_or_else(|| Error::invalid("say where to: --node NAME"))?;
            estate.move_volume(node, id, node)?;
            Ok(format!("{node} coordinates {path}."))
        }
    }
}

fn act_on_node(estate: &mut Estate, act: Act, node: &HostName) -> Result<String> {
    let is_down = estate.host(node)?.state == HostState::Down;
    match act {
        Act::NodeOff if is_down => Err(Error::invalid(format!("{node} is down"))),
        Act::NodeOff => {
            estate.crash_host(node)?;
            Ok(format!("{node} has lost power."))
        }
        Act::NodeOn => {
            estate.start_host(node)?;
            let boot = estate.timings_mut().boot;
            Ok(format!(
                "{node} starts; it answers in {} s of the lab's clock.",
                boot.as_secs()
            ))
        }
        Act::NodeDrain => {
            estate.pause_node(node, node, Drain::MoveRoles)?;
            Ok(format!("{node} is paused; its roles move away."))
        }
        Act::NodePause => {
            estate.pause_node(node, node, Drain::Keep)?;
            Ok(format!("{node} is paused."))
        }
        _ => {
            estate.resume_node(node, node)?;
            Ok(format!("{node} takes part again."))
        }
    }
}
