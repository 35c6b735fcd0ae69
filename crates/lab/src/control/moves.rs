//! Moving VMs and changing their states, as an operator on the host would, and waiting for the end of it.
//!
//! **Invariants.** What the estate refuses is refused, with its words. A VM that is taken out of its cluster for a move that then does
//! not begin is put back.

use std::time::Duration;

use super::desk::ControlDesk;
use super::messages::{GuestReport, MigrateReport, MigrateRequest, PowerChange};
use super::status;
use crate::estate::{
    Estate, GroupName, HostName, JobFailure, JobId, MigrationKind, MigrationRequest, PowerState,
    Started, VmId, WindowsPath,
};
use crate::{Error, ErrorKind, Result};

/// Longest that a migration is waited for, on the estate's clock.
const MIGRATION_MAX: Duration = Duration::from_secs(6 * 3600);
/// Longest that a change of state is waited for, on the estate's clock.
const CHANGE_MAX: Duration = Duration::from_secs(1800);

/// What a move is, once it is clear.
struct Move {
    id: VmId,
    from: HostName,
    node: HostName,
    folder: Option<WindowsPath>,
    role: Option<GroupName>,
    is_same_cluster: bool,
}

impl ControlDesk {
    pub(super) fn migrate(&self, asked: &MigrateRequest) -> Result<MigrateReport> {
        let node = self.find_host(&asked.node)?;
        let folder = asked.storage.as_deref().map(WindowsPath::parse);
        let folder = folder
            .transpose()
            .map_err(|error| Error::invalid(error.to_string()))?;
        let (from, id) = self.place(&asked.vm)?;
        let estate = &self.parts.estate;
        let plan = estate.read(|estate| {
            let cluster = estate.cluster_of(&from);
            if asked.as_role && estate.cluster_of(&node).is_none() {
                return Err(Error::invalid(format!("{node} is in no cluster")));
            }
            Ok(Move {
                id,
                role: cluster
                    .and_then(|it| it.group_of(id))
                    .map(|it| it.name.clone()),
                is_same_cluster: cluster.is_some_and(|it| it.nodes.contains_key(&node)),
                from: from.clone(),
                node: node.clone(),
                folder,
            })
        })?;
        let mut told = Vec::new();
        let job = estate.write(|estate| begin(estate, &plan, &mut told))?;
        if !asked.no_wait {
            self.wait_for_job("the migration", &from, job, MIGRATION_MAX)?;
            let (now, _) = self.place(&asked.vm)?;
            if now != node {
                return Err(Error::invalid(format!(
                    "the VM did not arrive: it is on {now}"
                )));
            }
            if asked.as_role {
                estate.write(|estate| estate.make_highly_available(&node, &id.to_string()))?;
                told.push(format!("It is a role of the cluster of {node}."));
            }
        } else if asked.as_role {
            told.push("It is made no role, because nobody waits for its arrival.".to_owned());
        }
        let (vm, under_way) = estate.read(|estate| {
            let found = self.find(estate, &asked.vm)?;
            let is_over = estate
                .job(&from, job)
                .map_or(true, |job| job.state.is_over());
            Ok::<_, Error>((status::vm(estate, found), !is_over))
        })?;
        Ok(MigrateReport {
            vm,
            from: from.to_string(),
            told,
            under_way,
        })
    }

    /// Until a job is over. One that is gone was over, or went with its host.
    fn wait_for_job(
        &self,
        what: &str,
        host: &HostName,
        id: JobId,
        patience: Duration,
    ) -> Result<()> {
        let failure: Option<JobFailure> = self.wait(what, patience, |estate| {
            Ok(match estate.job(host, id) {
                Ok(job) if !job.state.is_over() => None,
                Ok(job) => Some(job.failure.clone()),
                Err(_) => Some(None),
            })
        })?;
        match failure {
            Some(failure) => Err(Error::returned(
                failure.code,
                format!("{what}: {}", failure.text),
            )),
            None => Ok(()),
        }
    }

    pub(super) fn guest_power(&self, named: &str, change: PowerChange) -> Result<GuestReport> {
        let (host, id) = self.place(named)?;
        let estate = &self.parts.estate;
        let requested = match change {
            PowerChange::Start => 2,
            PowerChange::TurnOff => 3,
            PowerChange::Save => 6,
            PowerChange::Pause => 9,
            PowerChange::Reset => 11,
            PowerChange::ShutDown => {
                estate.write(|estate| estate.initiate_shutdown(&host, id))?;
                self.wait("the guest shutting down", CHANGE_MAX, |estate| {
                    let vm = estate.vm(&host, id)?;
                    Ok((vm.power == PowerState::Off).then_some(()))
                })?;
                return self.guest(named);
            }
        };
        let started = estate.write(|estate| estate.request_state_change(&host, id, requested))?;
        match started {
            Started::Job(job) => self.wait_for_job("the change", &host, job, CHANGE_MAX)?,
            Started::Done(_) => {}
            Started::UnnamedJob => self.wait("the change", CHANGE_MAX, |estate| {
                let vm = estate.vm(&host, id)?;
                Ok(vm.activity.is_none().then_some(()))
            })?,
        }
        self.guest(named)
    }
}

/// Begins a move; the job that does it.
fn begin(estate: &mut Estate, plan: &Move, told: &mut Vec<String>) -> Result<JobId> {
    let Move {
        id,
        from,
        node,
        folder,
        role,
        is_same_cluster,
    } = plan;
    let kind = match (from == node, folder.is_some()) {
        (true, true) => MigrationKind::Storage,
        (true, false) => {
            return Err(Error::invalid(format!(
                "it is on {node} already; to move its files give --storage"
            )));
        }
        (false, true) => MigrationKind::VmAndStorage,
        (false, false) => MigrationKind::Vm,
    };
    let request = MigrationRequest {
        destination: (from != node).then(|| node.clone()),
        kind,
        folder: folder.clone(),
    };
    match (role, kind) {
        (Some(group), MigrationKind::Vm) if *is_same_cluster => {
            estate.move_group(from, group, node)?;
            told.push(format!("The cluster moves the role {group}."));
        }
        (Some(_), MigrationKind::VmAndStorage) if *is_same_cluster => {
            return Err(Error::invalid(
                "a role of a cluster moves first with its files on its own node, then to the other",
            ));
        }
        (Some(group), MigrationKind::Vm | MigrationKind::VmAndStorage) => {
            estate.remove_role(from, group)?;
            if let Err(error) = estate.migrate(from, *id, request) {
                estate.make_highly_available(from, &id.to_string())?;
                return Err(error);
            }
            told.push(format!("The role {group} is taken out of its cluster."));
        }
        _ => {
            estate.migrate(from, *id, request)?;
        }
    }
    told.push(match (kind, folder) {
        (MigrationKind::Storage, Some(folder)) => format!("Its files move to {folder}."),
        (_, Some(folder)) => {
            format!("It moves from {from} to {node}, its files to {folder}.")
        }
        (_, None) => format!("It moves from {from} to {node}."),
    });
    let job = estate.vm(from, *id)?.activity.map(|(_, job)| job);
    job.ok_or_else(|| Error::new(ErrorKind::Invalid, "the migration has no job"))
}
