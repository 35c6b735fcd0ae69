//! Who may do what: accounts of a host and their rights in namespaces.
//!
//! ```text
//!   Administrator            everything
//!   HyperVAdministrator      root/virtualization/v2
//!   RemoteUser               gets in, and is refused in every namespace (w:AccessDenied)
//! ```
//!
//! **Invariant.** An account that is not named has no rights.

use std::collections::BTreeMap;

use wsman::cim::Namespace;
use wsman::message::{Fault, FaultCode, hresult, wsman_code};
use wsman::server::{AccountName, Caller};

use super::identity::VIRTUALIZATION;

/// What an account is on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Of Administrators.
    Administrator,
    /// Of Hyper-V Administrators and Remote Management Users.
    HyperVAdministrator,
    /// Of Remote Management Users only.
    RemoteUser,
}

/// Roles of accounts, compared without case.
#[derive(Debug, Clone, Default)]
pub struct Roles {
    by_name: BTreeMap<String, Role>,
}

impl Roles {
    /// Nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one account more.
    #[must_use]
    pub fn with(mut self, account: &AccountName, role: Role) -> Self {
        self.by_name.insert(fold(account), role);
        self
    }

    fn role_of(&self, caller: &Caller) -> Option<Role> {
        match caller {
            Caller::Anonymous => None,
            Caller::Account(name) => self.by_name.get(&fold(name)).copied(),
        }
    }

    /// Whether a caller may work in a namespace.
    ///
    /// # Errors
    /// `w:AccessDenied` with the code of WMI.
    pub fn check(&self, caller: &Caller, namespace: &Namespace) -> Result<(), Fault> {
        let is_allowed = match self.role_of(caller) {
            Some(Role::Administrator) => true,
            Some(Role::HyperVAdministrator) => *namespace == *VIRTUALIZATION,
            Some(Role::RemoteUser) | None => false,
        };
        if is_allowed {
            return Ok(());
        }
        Err(Fault::new(FaultCode::AccessDenied)
            .with_wsman_code(wsman_code::WMI_CANNOT_CONNECT_ACCESS_DENIED)
            .with_hresult(hresult::ACCESS_DENIED, "Access denied"))
    }
}

fn fold(account: &AccountName) -> String {
    account.as_str().to_lowercase()
}
