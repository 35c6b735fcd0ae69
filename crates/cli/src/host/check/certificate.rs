//! A host's certificate that was not believed: what is wrong with it, which one it is, and what to do.

use wsman::transport::CertificateProblem;

use super::super::connect::Hosts;
use super::super::registry::HostEntry;
use super::{Outcome, Step};
use crate::serving::chain;

/// Shows SHA-256 fingerprints on the host.
const ON_THE_HOST: &str = "on the host, in PowerShell: Get-ChildItem Cert:\\LocalMachine\\My | ForEach-Object { $_.Subject; \
     [BitConverter]::ToString([Security.Cryptography.SHA256]::Create().ComputeHash($_.RawData)) }";

/// The step, when it was the certificate.
pub fn step(hosts: &Hosts, entry: &HostEntry, error: &wsman::Error) -> Option<Step> {
    let problem = CertificateProblem::of(error)?;
    let shown = match problem {
        CertificateProblem::NotPinned { shown } => Some(shown),
        _ => hosts.shown_certificate(entry),
    };
    let pin = match shown {
        Some(shown) => format!("--pin {shown}"),
        None => "--pin SHA256".to_owned(),
    };
    let again = format!("hikae host add {} … --replace", entry.name);
    let (what, next) = match problem {
        CertificateProblem::Expired => (
            "its certificate has expired",
            format!(
                "Renew it on the host and bind it to the HTTPS listener; or believe this one as it is: {again} {pin}"
            ),
        ),
        CertificateProblem::NotYetValid => (
            "its certificate is not valid yet",
            "Look at the clocks here and on the host".to_owned(),
        ),
        CertificateProblem::WrongName => (
            "its certificate is for another name",
            format!(
                "Reach the host by the name in its certificate (--address https://NAME:5986); or believe this one: {again} {pin}"
            ),
        ),
        CertificateProblem::UnknownAuthority => (
            "nobody who is believed vouches for its certificate",
            format!(
                "Say who does: {again} --ca FILE; or compare the fingerprint ({ON_THE_HOST}), then: {again} {pin}"
            ),
        ),
        CertificateProblem::NotPinned { .. } => (
            "it shows another certificate than the pinned one",
            format!(
                "Find out why. If it was renewed, compare the fingerprint ({ON_THE_HOST}), then: {again} {pin}"
            ),
        ),
        _ => (
            "its certificate cannot be believed",
            format!(
                "Look at the certificate of the HTTPS listener; or compare the fingerprint ({ON_THE_HOST}), then: {again} {pin}"
            ),
        ),
    };
    let shown = shown.map_or(String::new(), |shown| format!(" (SHA-256 {shown})"));
    Some(Step {
        step: "line",
        outcome: Outcome::Failed,
        found: format!("{what}{shown}: {}", chain(error)),
        next: Some(next),
    })
}
