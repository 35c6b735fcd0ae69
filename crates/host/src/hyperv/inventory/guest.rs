//! What guests tell about themselves, and marks of ours beside machines: key-value items.

use std::collections::BTreeMap;

use wsman::cim::{CimInstance, embedded};

use super::super::decode::guest_family;
use crate::custody::MachineMark;
use crate::facts::GuestFacts;

/// Most items of a guest that are kept, and the longest value of one.
const MAX_ITEMS: usize = 256;
const MAX_VALUE: usize = 4096;

/// Name and value of items, each an instance as text. What cannot be read is a guest's own business and left out.
pub(in super::super) fn items(row: &CimInstance, property: &str) -> Vec<(String, String)> {
    let texts = row.texts(property).unwrap_or_default();
    texts
        .iter()
        .take(MAX_ITEMS)
        .filter_map(|text| {
            let item = embedded::read(text).ok()?;
            let name = item.text_ref("Name")?.to_owned();
            let value = item.text_ref("Data").unwrap_or_default();
            Some((name, value.chars().take(MAX_VALUE).collect()))
        })
        .collect()
}

/// Facts out of the component's intrinsic items.
pub(super) fn facts(component: &CimInstance) -> GuestFacts {
    let all = items(component, "GuestIntrinsicExchangeItems");
    let items: BTreeMap<String, String> = all.into_iter().collect();
    let of = |name: &str| items.get(name).filter(|it| !it.is_empty()).cloned();
    let addresses = ["NetworkAddressIPv4", "NetworkAddressIPv6"]
        .iter()
        .filter_map(|name| items.get(*name))
        .flat_map(|text| text.split(';'))
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .take(64)
        .map(ToOwned::to_owned)
        .collect();
    GuestFacts {
        family: guest_family(
            items.get("OSName").map(String::as_str),
            items.get("OSPlatformId").map(String::as_str),
        ),
        os_name: of("OSName"),
        os_version: of("OSVersion"),
        host_name: of("FullyQualifiedDomainName"),
        integration_version: of("IntegrationServicesVersion"),
        addresses,
        items,
    }
}

/// Marks of ours among the items that only the host sees.
pub(super) fn marks(settings: &CimInstance) -> Vec<MachineMark> {
    items(settings, "HostOnlyItems")
        .iter()
        .filter_map(|(name, value)| MachineMark::parse(name, value))
        .collect()
}
