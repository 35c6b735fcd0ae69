//! The cluster's methods: roles, their owners, nodes. They return nothing; what goes wrong is a fault with an error of Windows.

use super::arguments::invalid_parameter;
use super::{Answer, Call, Outcome, Refusal};
use crate::estate::{Drain, GroupName, HostName, ResourceName, Switch};
use crate::{Error, Win32Error};

fn invalid(what: &str) -> Refusal {
    Error::win32(Win32Error::INVALID_PARAMETER, what).into()
}

fn not_supported(what: &str) -> Refusal {
    // ERROR_NOT_SUPPORTED.
    Error::win32(Win32Error(50), what).into()
}

/// The name in the path of the object that is called.
fn name(call: &Call<'_>) -> Result<String, Refusal> {
    call.target.key("Name").ok_or_else(|| invalid("no name"))
}

fn group(call: &Call<'_>) -> Result<GroupName, Refusal> {
    let group = GroupName::new(name(call)?);
    let cluster = call.estate.live_cluster(&call.host)?;
    if !cluster.groups.contains_key(&group) {
        return Err(Error::win32(Win32Error::GROUP_NOT_FOUND, format!("no group {group}")).into());
    }
    Ok(group)
}

fn resource(call: &Call<'_>) -> Result<ResourceName, Refusal> {
    let resource = ResourceName::new(name(call)?);
    let cluster = call.estate.live_cluster(&call.host)?;
    if !cluster.resources.contains_key(&resource) {
        let what = format!("no resource {resource}");
        return Err(Error::win32(Win32Error::RESOURCE_NOT_FOUND, what).into());
    }
    Ok(resource)
}

/// The group of the resource that is called.
fn group_of_resource(call: &Call<'_>) -> Result<GroupName, Refusal> {
    let resource = resource(call)?;
    let cluster = call.estate.live_cluster(&call.host)?;
    let found = cluster.resources.get(&resource).map(|it| it.group.clone());
    found.ok_or_else(|| invalid("no group"))
}

fn text(call: &Call<'_>, name: &str) -> Result<String, Refusal> {
    call.inputs.text(name).ok_or_else(|| invalid(name))
}

fn refuse_given(call: &Call<'_>, names: &[&str]) -> Result<(), Refusal> {
    for name in names {
        let given = call
            .inputs
            .numbers(name)
            .map_or(true, |values| values.iter().any(|it| *it != 0));
        if given {
            return Err(not_supported(name));
        }
    }
    Ok(())
}

/// `AddVirtualMachine`: of a VM on the node that is asked.
pub(super) fn add_virtual_machine(call: &mut Call<'_>) -> Answer {
    let vm = text(call, "VirtualMachine")?;
    let host = call.host.clone();
    call.estate.add_virtual_machine(&host, &vm)?;
    Ok(Outcome::void())
}

/// `BringOnline` of a group. It is begun when this returns, whatever `TimeOut` says.
pub(super) fn group_online(call: &mut Call<'_>) -> Answer {
    refuse_given(call, &["Flags"])?;
    let (host, group) = (call.host.clone(), group(call)?);
    call.estate.bring_online(&host, &group)?;
    Ok(Outcome::void())
}

/// `TakeOffline` of a group.
pub(super) fn group_offline(call: &mut Call<'_>) -> Answer {
    refuse_given(call, &["Parameters", "Flags"])?;
    let (host, group) = (call.host.clone(), group(call)?);
    call.estate.take_offline(&host, &group)?;
    Ok(Outcome::void())
}

/// `BringOnline` of a resource: its group follows.
pub(super) fn resource_online(call: &mut Call<'_>) -> Answer {
    let (host, group) = (call.host.clone(), group_of_resource(call)?);
    call.estate.bring_online(&host, &group)?;
    Ok(Outcome::void())
}

/// `TakeOffline` of a resource.
pub(super) fn resource_offline(call: &mut Call<'_>) -> Answer {
    refuse_given(call, &["Parameters", "Flags"])?;
    let (host, group) = (call.host.clone(), group_of_resource(call)?);
    call.estate.take_offline(&host, &group)?;
    Ok(Outcome::void())
}

/// `MoveToNewNode`.
pub(super) fn move_group(call: &mut Call<'_>) -> Answer {
    let node = HostName::new(text(call, "NodeName")?);
    let (host, group) = (call.host.clone(), group(call)?);
    call.estate.move_group(&host, &group, &node)?;
    Ok(Outcome::void())
}

/// `MoveToNewNodeParams`: where the switch is kind, with the list that asks for a live migration.
pub(super) fn move_group_with_parameters(call: &mut Call<'_>) -> Answer {
    if !call.is_kind(Switch::MoveToNewNodeParams) {
        return Err(invalid("Parameters"));
    }
    let bytes: Result<Vec<u8>, Refusal> = call
        .inputs
        .numbers("Parameters")?
        .into_iter()
        .map(|it| u8::try_from(it).map_err(|_| invalid_parameter()))
        .collect();
    check_move_parameters(&bytes?)?;
    move_group(call)
}

/// The list: count, then for each entry name and value; every value 4, live migration.
fn check_move_parameters(bytes: &[u8]) -> Result<(), Refusal> {
    let bad = || invalid("Parameters is no property list that asks for a live migration");
    let mut rest = bytes;
    let mut word = |length: usize| -> Option<&[u8]> {
        let (head, tail) = rest.split_at_checked(length)?;
        rest = tail;
        Some(head)
    };
    let count = word(4).and_then(read_u32).ok_or_else(bad)?;
    for _ in 0..count.min(16) {
        let syntax = word(4).and_then(read_u32).ok_or_else(bad)?;
        let length = word(4).and_then(read_u32).ok_or_else(bad)?;
        let padded = usize::try_from(length)
            .ok()
            .and_then(|it| it.checked_next_multiple_of(4));
        word(padded.ok_or_else(bad)?).ok_or_else(bad)?;
        let value_syntax = word(4).and_then(read_u32).ok_or_else(bad)?;
        let value_length = word(4).and_then(read_u32).ok_or_else(bad)?;
        let value = word(4).and_then(read_u32).ok_or_else(bad)?;
        let end = word(4).and_then(read_u32).ok_or_else(bad)?;
        let is_right = syntax == 0x0004_0003
            && value_syntax == 0x0001_0002
            && value_length == 4
            && value == 4
            && end == 0;
        if !is_right {
            return Err(bad());
        }
    }
    if count == 0 { Err(bad()) } else { Ok(()) }
}

fn read_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// `DestroyGroup`: with `Options` 1, a role with its resources. The VM stays.
pub(super) fn destroy_group(call: &mut Call<'_>) -> Answer {
    if call.inputs.required_number("Options")? != 1 {
        return Err(not_supported("Options"));
    }
    let (host, group) = (call.host.clone(), group(call)?);
    call.estate.remove_role(&host, &group)?;
    Ok(Outcome::void())
}

fn nodes(call: &Call<'_>, name: &str) -> Vec<HostName> {
    call.inputs.texts(name).iter().map(HostName::new).collect()
}

fn names(owners: &[HostName]) -> Option<Vec<String>> {
    (!owners.is_empty()).then(|| owners.iter().map(ToString::to_string).collect())
}

/// `SetPreferredOwners`.
pub(super) fn set_preferred_owners(call: &mut Call<'_>) -> Answer {
    let owners = nodes(call, "NodeNames");
    let (host, group) = (call.host.clone(), group(call)?);
    call.estate.set_preferred_owners(&host, &group, owners)?;
    Ok(Outcome::void())
}

/// `GetPreferredOwners`.
pub(super) fn get_preferred_owners(call: &mut Call<'_>) -> Answer {
    let group = group(call)?;
    let cluster = call.estate.live_cluster(&call.host)?;
    let owners = cluster
        .groups
        .get(&group)
        .map(|it| names(&it.preferred_owners));
    Ok(Outcome::void().with("NodeNames", owners.flatten()))
}

fn possible_owners(call: &Call<'_>) -> Result<(ResourceName, Vec<HostName>), Refusal> {
    let resource = resource(call)?;
    let cluster = call.estate.live_cluster(&call.host)?;
    let owners = cluster
        .resources
        .get(&resource)
        .map(|it| it.possible_owners.clone());
    Ok((resource, owners.unwrap_or_default()))
}

/// `GetPossibleOwners`.
pub(super) fn get_possible_owners(call: &mut Call<'_>) -> Answer {
    let (_, owners) = possible_owners(call)?;
    Ok(Outcome::void().with("NodeNames", names(&owners)))
}

/// `AddPossibleOwner`.
pub(super) fn add_possible_owner(call: &mut Call<'_>) -> Answer {
    let node = HostName::new(text(call, "NodeName")?);
    let (resource, mut owners) = possible_owners(call)?;
    if !owners.contains(&node) {
        owners.push(node);
    }
    let host = call.host.clone();
    call.estate.set_possible_owners(&host, &resource, owners)?;
    Ok(Outcome::void())
}

/// `RemovePossibleOwner`.
pub(super) fn remove_possible_owner(call: &mut Call<'_>) -> Answer {
    let node = HostName::new(text(call, "NodeName")?);
    let (resource, mut owners) = possible_owners(call)?;
    owners.retain(|it| *it != node);
    let host = call.host.clone();
    call.estate.set_possible_owners(&host, &resource, owners)?;
    Ok(Outcome::void())
}

/// `UpdateVirtualMachine`: the lab's cluster always knows its VMs' configuration, so that there is nothing to refresh.
pub(super) fn update_virtual_machine(call: &mut Call<'_>) -> Answer {
    let (resource, _) = possible_owners(call)?;
    let cluster = call.estate.live_cluster(&call.host)?;
    let is_vm = cluster
        .resources
        .get(&resource)
        .is_some_and(|it| it.vm.is_some());
    if is_vm {
        Ok(Outcome::void())
    } else {
        Err(invalid("no virtual machine"))
    }
}

/// `MoveToNewHost` of a shared volume: another node coordinates it.
pub(super) fn move_volume(call: &mut Call<'_>) -> Answer {
    let node = HostName::new(text(call, "HostName")?);
    let wanted = name(call)?;
    let cluster = call.estate.live_cluster(&call.host)?;
    let storage = call.estate.storage();
    let mut volumes = cluster.volumes.iter().filter_map(|id| storage.volume(*id));
    let found = volumes
        .find(|it| it.path().eq_ignore_ascii_case(&wanted))
        .map(|it| it.id);
    let id = found.ok_or_else(|| super::not_found(wanted))?;
    let host = call.host.clone();
    call.estate.move_volume(&host, id, &node)?;
    Ok(Outcome::void())
}

/// `Pause` of a node: `DrainType` 0 keeps roles, 1 moves them.
pub(super) fn pause_node(call: &mut Call<'_>) -> Answer {
    let drain = match call.inputs.number("DrainType")? {
        None | Some(0) => Drain::Keep,
        Some(1) => Drain::MoveRoles,
        Some(_) => return Err(invalid("DrainType")),
    };
    if call.inputs.text("TargetNode").is_some() {
        return Err(not_supported("TargetNode"));
    }
    let (host, node) = (call.host.clone(), HostName::new(name(call)?));
    call.estate.pause_node(&host, &node, drain)?;
    Ok(Outcome::void())
}

/// `Resume` of a node: roles stay where they are (`FailbackType` 0).
pub(super) fn resume_node(call: &mut Call<'_>) -> Answer {
    refuse_given(call, &["FailbackType"])?;
    let (host, node) = (call.host.clone(), HostName::new(name(call)?));
    call.estate.resume_node(&host, &node)?;
    Ok(Outcome::void())
}
