//! Marks beside machines: key-value items that only the host sees, for what has no name of its own.

use wsman::cim::{CimInstance, CimValue};

use super::names::{SYSTEM_SERVICE, embed, exchange_item};
use super::node::Node;
use super::{HyperV, MachineMarks};
use crate::checkpoint::{Warning, WarningCode};
use crate::clock::CancelToken;
use crate::custody::MachineMark;
use crate::error::chain_text;
use crate::ids::VmId;
use crate::{ErrorKind, Result};

/// Seen by the host alone.
const HOST_ONLY: u64 = 4;

impl HyperV {
    /// Writes a mark. That it cannot be written is a warning: the journal has it.
    pub(super) fn mark_machine(
        &self,
        node: &Node,
        vm: VmId,
        mark: &MachineMark,
        warnings: &mut Vec<Warning>,
    ) {
        if self.options.machine_marks == MachineMarks::Leave {
            return;
        }
        let written = self.call_items(node, vm, mark, "AddKvpItems", &CancelToken::new());
        if let Err(error) = written {
            warnings.push(Warning {
                code: WarningCode::Unmarked,
                text: chain_text(&error),
            });
        }
    }

    /// Takes a mark away where the machine is now.
    pub(super) fn unmark_machine(
        &self,
        vm: VmId,
        mark: &MachineMark,
        cancel: &CancelToken,
    ) -> Result<()> {
        if self.options.machine_marks == MachineMarks::Leave {
            return Ok(());
        }
        let removed = self.on_owner(vm, cancel, |node| {
            self.call_items(node, vm, mark, "RemoveKvpItems", cancel)
        });
        match removed {
            Ok(_) => Ok(()),
            // An item that is gone is what was wanted: hosts call it an invalid parameter.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn call_items(
        &self,
        node: &Node,
        vm: VmId,
        mark: &MachineMark,
        method: &str,
        cancel: &CancelToken,
    ) -> Result<()> {
        let item = CimInstance::new("Msvm_KvpExchangeDataItem")
            .with("Name", mark.item_name())
            .with("Data", mark.item_text())
            .with("Source", HOST_ONLY);
        let inputs = [
            ("TargetSystem", CimValue::from(node.machine(vm))),
            (
                "DataItems",
                CimValue::Array(vec![embed(&item, &exchange_item())?]),
            ),
        ];
        let service = node.service(SYSTEM_SERVICE);
        self.run(node, &service, method, &inputs, cancel).map(drop)
    }
}
