//! Leases as an operator sees and ends them.

use crate::repository::Repository;
use crate::{Error, ErrorKind, LeaseId, Result};

use super::watch::{BreakOutcome, LeaseView, break_lease, list_leases};

impl Repository {
    /// Every lease, by id; an unreadable one is among them.
    ///
    /// # Errors
    /// What the store answered.
    pub fn leases(&self) -> Result<Vec<LeaseView>> {
        list_leases(self.vault().as_ref())
    }

    /// Declares the owner of a lease dead, whether it is or not: a writer can never commit afterwards, a reader finds out
    /// at its next beat. Safe at any time; what it costs is that operation.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Corrupt`] when nobody can tell which point it reserved.
    pub fn break_lease(&self, id: LeaseId) -> Result<BreakOutcome> {
        let views = self.leases()?;
        let view = views
            .iter()
            .find(|view| view.id == id)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no lease {id}")))?;
        break_lease(self.vault().as_ref(), view)
    }
}
