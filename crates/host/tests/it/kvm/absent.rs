//! What the spike does not do. None of it is asked by the suite, except which machines exist halfway: none.

use host::boundary::{Definition, Mobility, UserCheckpoints};
use host::checkpoint::{DeleteScope, Released, UserCheckpoint, UserCheckpointRequest};
use host::cluster::{MigrationRequest, Move};
use host::custody::Custody;
use host::definition::{Defined, ExportRequest, ImportRequest, MachineSpec};
use host::facts::Location;
use host::ids::{CheckpointRef, NodeName, VmId};
use host::{CancelToken, Error, ErrorKind, Result};

use super::guest::QemuGuest;

fn absent<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "not part of the spike"))
}

impl UserCheckpoints for QemuGuest {
    fn create_checkpoint(
        &self,
        _: &UserCheckpointRequest,
        _: &CancelToken,
    ) -> Result<UserCheckpoint> {
        absent()
    }

    fn apply_checkpoint(&self, _: &CheckpointRef, _: &CancelToken) -> Result<()> {
        absent()
    }

    fn rename_checkpoint(&self, _: &CheckpointRef, _: &str, _: &CancelToken) -> Result<()> {
        absent()
    }

    fn export_checkpoint(
        &self,
        _: &CheckpointRef,
        _: &ExportRequest,
        _: &CancelToken,
    ) -> Result<()> {
        absent()
    }

    fn delete_checkpoint(
        &self,
        _: &CheckpointRef,
        _: DeleteScope,
        _: &CancelToken,
    ) -> Result<Released> {
        absent()
    }
}

impl Definition for QemuGuest {
    fn import(&self, _: &ImportRequest, _: &Custody, _: &CancelToken) -> Result<Defined> {
        absent()
    }

    fn define(
        &self,
        _: &NodeName,
        _: &MachineSpec,
        _: &Custody,
        _: &CancelToken,
    ) -> Result<Defined> {
        absent()
    }

    fn planned(&self, _: &NodeName, _: &CancelToken) -> Result<Vec<VmId>> {
        Ok(Vec::new())
    }

    fn discard_planned(
        &self,
        _: &NodeName,
        _: VmId,
        _: &Custody,
        _: &CancelToken,
    ) -> Result<Released> {
        absent()
    }

    fn unregister(&self, _: VmId, _: &CancelToken) -> Result<()> {
        absent()
    }

    fn export(&self, _: VmId, _: &ExportRequest, _: &CancelToken) -> Result<()> {
        absent()
    }
}

impl Mobility for QemuGuest {
    fn moves(&self, _: &[(VmId, NodeName)], _: &CancelToken) -> Result<Vec<Move>> {
        Ok(Vec::new())
    }

    fn migrate(&self, _: &MigrationRequest, _: &CancelToken) -> Result<Location> {
        absent()
    }
}
