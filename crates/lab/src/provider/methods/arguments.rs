//! Parameters of a call, read with the rules of Windows.
//!
//! ```text
//!   text of an embedded instance ─► read strictly against the class ─► or the return code that Windows has for the mistake
//!   reference ─► the object of the estate that it names ─► or "not found"
//! ```

use std::collections::BTreeMap;

use uuid::Uuid;
use wsman::cim::embedded::{EmbeddedProblem, read_strict};
use wsman::cim::{CimInstance, CimPath, CimValue, ClassName};
use wsman::message::{Fault, FaultCode, hresult};

use super::{Call, Refusal, not_found};
use crate::ReturnCode;
use crate::estate::{CheckpointId, Realm, ReferencePointId, VmId, WindowsPath};
use crate::provider::identity::PartedId;

/// Parameters by name.
pub(in crate::provider) struct Inputs<'c> {
    values: &'c BTreeMap<String, CimValue>,
}

/// Settings that a reference names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SettingsOf {
    /// Of a VM or a planned system.
    System(Realm, VmId),
    /// Of a checkpoint.
    Checkpoint(CheckpointId),
}

fn code(code: ReturnCode) -> Refusal {
    Refusal::Code(code.value())
}

/// A parameter that is wrong.
pub(super) fn invalid_parameter() -> Refusal {
    code(ReturnCode::InvalidParameter)
}

impl<'c> Inputs<'c> {
    pub(in crate::provider) fn new(values: &'c BTreeMap<String, CimValue>) -> Self {
        Self { values }
    }

    fn value(&self, name: &str) -> Option<&'c CimValue> {
        self.values.get(name).filter(|value| !value.is_null())
    }

    /// A text; an empty one counts as none.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let text = self.value(name)?.to_wire_text()?;
        Some(text).filter(|text| !text.trim().is_empty())
    }

    /// A text that must be there.
    pub(super) fn required_text(&self, name: &str) -> Result<String, Refusal> {
        self.text(name).ok_or_else(invalid_parameter)
    }

    /// A path of a file that must be there.
    pub(super) fn path(&self, name: &str) -> Result<WindowsPath, Refusal> {
        Ok(WindowsPath::parse(&self.required_text(name)?)?)
    }

    /// Texts.
    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Some(CimValue::Array(values)) => {
                values.iter().filter_map(CimValue::to_wire_text).collect()
            }
            Some(value) => value.to_wire_text().into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// A number.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        match self.value(name) {
            None => Ok(None),
            Some(CimValue::Uint(number)) => Ok(Some(*number)),
            Some(other) => {
                let text = other.to_wire_text();
                let number = text.and_then(|text| text.trim().parse().ok());
                number.map(Some).ok_or_else(invalid_parameter)
            }
        }
    }

    /// A number that must be there.
    pub(super) fn required_number(&self, name: &str) -> Result<u64, Refusal> {
        self.number(name)?.ok_or_else(invalid_parameter)
    }

    /// Numbers.
    pub(super) fn numbers(&self, name: &str) -> Result<Vec<u64>, Refusal> {
        let texts = self.texts(name).into_iter();
        texts
            .map(|text| text.trim().parse().map_err(|_| invalid_parameter()))
            .collect()
    }

    /// A truth value; false where it is not given.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.value(name) {
            None => Ok(false),
            Some(CimValue::Boolean(value)) => Ok(*value),
            Some(other) => match other.to_wire_text().as_deref() {
                Some("true" | "TRUE") => Ok(true),
                Some("false" | "FALSE") => Ok(false),
                _ => Err(invalid_parameter()),
            },
        }
    }

    /// A reference.
    pub(super) fn reference(&self, name: &str) -> Option<&'c CimPath> {
        match self.value(name)? {
            CimValue::Reference(path) => Some(path),
            _ => None,
        }
    }

    /// A reference that must be there.
    pub(super) fn required_reference(&self, name: &str) -> Result<&'c CimPath, Refusal> {
        self.reference(name).ok_or_else(invalid_parameter)
    }

    /// References.
    pub(super) fn references(&self, name: &str) -> Result<Vec<&'c CimPath>, Refusal> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(CimValue::Reference(path)) => Ok(vec![path]),
            Some(CimValue::Array(values)) => values
                .iter()
                .map(|value| match value {
                    CimValue::Reference(path) => Ok(path.as_ref()),
                    _ => Err(invalid_parameter()),
                })
                .collect(),
            Some(_) => Err(invalid_parameter()),
        }
    }
}

/// Where an embedded instance stands: `DefineSystem` has codes of its own for the same mistakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strictness {
    Define,
    Other,
}

impl Call<'_> {
    /// An embedded instance of a class, if one is given.
    pub(super) fn embedded(&self, name: &str, class: &str) -> Result<Option<CimInstance>, Refusal> {
        match self.inputs.text(name) {
            None => Ok(None),
            Some(text) => self
                .read_embedded(&text, class, Strictness::Other)
                .map(Some),
        }
    }

    /// Embedded instances of a class.
    pub(super) fn embedded_list(
        &self,
        name: &str,
        class: &str,
        strictness: Strictness,
    ) -> Result<Vec<CimInstance>, Refusal> {
        let texts = self.inputs.texts(name);
        texts
            .iter()
            .map(|text| self.read_embedded(text, class, strictness))
            .collect()
    }

    /// Reads an embedded instance as a host would.
    pub(super) fn read_embedded(
        &self,
        text: &str,
        class: &str,
        strictness: Strictness,
    ) -> Result<CimInstance, Refusal> {
        read_strict(text, self.schemas, Some(&ClassName::new(class))).map_err(|error| {
            let define = strictness == Strictness::Define;
            code(match error.problem {
                EmbeddedProblem::ArrayExpected | EmbeddedProblem::ScalarExpected if define => {
                    ReturnCode::IncorrectDataType
                }
                EmbeddedProblem::WrongType if define => ReturnCode::IncorrectDataType,
                EmbeddedProblem::WrongType | EmbeddedProblem::BadValue => ReturnCode::Failed,
                _ => ReturnCode::InvalidParameter,
            })
        })
    }

    /// The VM that a parameter names; it must be on this host.
    pub(super) fn vm(&self, name: &str) -> Result<VmId, Refusal> {
        let id = self.vm_of_path(self.inputs.required_reference(name)?)?;
        self.estate.vm(&self.host, id)?;
        Ok(id)
    }

    /// The planned system that a parameter names.
    pub(super) fn planned(&self, name: &str) -> Result<VmId, Refusal> {
        let id = self.vm_of_path(self.inputs.required_reference(name)?)?;
        self.estate.planned(&self.host, id)?;
        Ok(id)
    }

    /// The system that a parameter names, realized or planned.
    pub(super) fn system(&self, name: &str) -> Result<(Realm, VmId), Refusal> {
        let path = self.inputs.required_reference(name)?;
        let id = self.vm_of_path(path)?;
        let is_planned = path.class == "Msvm_PlannedComputerSystem";
        if is_planned {
            self.estate.planned(&self.host, id)?;
            return Ok((Realm::Planned, id));
        }
        self.estate.vm(&self.host, id)?;
        Ok((Realm::Realized, id))
    }

    /// The id in a path of a system.
    pub(super) fn vm_of_path(&self, path: &CimPath) -> Result<VmId, Refusal> {
        let is_system =
            path.class == "Msvm_ComputerSystem" || path.class == "Msvm_PlannedComputerSystem";
        if !is_system {
            return Err(invalid_parameter());
        }
        let name = path.key("Name").unwrap_or_default();
        // The host's own entry is a system, too, and no VM.
        Ok(VmId(
            Uuid::try_parse(&name).map_err(|_| invalid_parameter())?,
        ))
    }

    /// The settings that a parameter names.
    pub(super) fn settings_of(&self, name: &str) -> Result<SettingsOf, Refusal> {
        self.settings_of_path(self.inputs.required_reference(name)?)
    }

    /// The settings of a path.
    pub(super) fn settings_of_path(&self, path: &CimPath) -> Result<SettingsOf, Refusal> {
        if path.class != "Msvm_VirtualSystemSettingData" {
            return Err(invalid_parameter());
        }
        let text = path.key("InstanceID").unwrap_or_default();
        let parted = PartedId::parse(&text).filter(|it| it.rest.is_empty());
        let parted = parted.ok_or_else(|| not_found(text.clone()))?;
        if self.estate.vm(&self.host, parted.vm()).is_ok() {
            return Ok(SettingsOf::System(Realm::Realized, parted.vm()));
        }
        if self.estate.planned(&self.host, parted.vm()).is_ok() {
            return Ok(SettingsOf::System(Realm::Planned, parted.vm()));
        }
        let checkpoint = parted.checkpoint();
        self.estate.vm_of_checkpoint(&self.host, checkpoint)?;
        Ok(SettingsOf::Checkpoint(checkpoint))
    }

    /// The checkpoint that a parameter names.
    pub(super) fn checkpoint(&self, name: &str) -> Result<CheckpointId, Refusal> {
        match self.settings_of(name)? {
            SettingsOf::Checkpoint(id) => Ok(id),
            SettingsOf::System(..) => Err(invalid_parameter()),
        }
    }

    /// The reference point that a parameter names, with its VM. Both keys are needed.
    pub(super) fn reference_point(&self, name: &str) -> Result<(VmId, ReferencePointId), Refusal> {
        let path = self.inputs.required_reference(name)?;
        if path.class != "Msvm_VirtualSystemReferencePoint" {
            return Err(invalid_parameter());
        }
        let guid = |key: &str| {
            let text = path.key(key)?;
            Uuid::try_parse(text.trim_start_matches("Microsoft:")).ok()
        };
        let (Some(point), Some(vm)) = (guid("InstanceID"), guid("VirtualSystemIdentifier")) else {
            return Err(Fault::new(FaultCode::InvalidSelectors)
                .with_hresult(
                    hresult::INVALID_OBJECT_PATH,
                    "a reference point has two keys",
                )
                .into());
        };
        Ok((VmId(vm), ReferencePointId(point)))
    }
}
