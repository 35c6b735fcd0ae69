//! From what stands in `<X_INPUT>` to the typed inputs of a method.
//!
//! **Invariants.** As Windows: names exactly, no parameter that the method does not have, arrays only where an array is declared,
//! references in their direct form (checked when reading), embedded instances as text and never as element trees.

use crate::cim::{CimInstance, CimType, CimValue};
use crate::message::{Fault, FaultCode, wsman_code};
use crate::schema::{Arity, MethodSchema, ParameterSchema};

/// Whether parameters must stand in the order of MOF. Not known of Windows: tests run both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParameterOrder {
    /// They must.
    AsDeclared,
    /// They need not.
    Any,
}

fn schema_error(reason: String) -> Fault {
    Fault::new(FaultCode::SchemaValidationError).because(reason)
}

/// Checks and types what a caller sent.
pub(super) fn typed_inputs(
    method: &MethodSchema,
    sent: &[(String, CimValue)],
    order: ParameterOrder,
) -> Result<CimInstance, Fault> {
    let declared: Vec<&ParameterSchema> = method.inputs_in_order().collect();
    let mut inputs = CimInstance::new(format!("{}_INPUT", method.name).as_str());
    let mut next = 0;
    for (name, value) in sent {
        let position = declared
            .iter()
            .position(|it| it.name == *name)
            .ok_or_else(|| {
                schema_error(format!("{} has no parameter {name:.60}.", method.name))
                    .with_wsman_code(wsman_code::INVALID_PARAMETER_NAME)
            })?;
        if inputs.properties.contains_key(name) {
            return Err(schema_error(format!(
                "Parameter {name} stands in two places."
            )));
        }
        if order == ParameterOrder::AsDeclared && position < next {
            return Err(schema_error(format!(
                "Parameter {name} is not in the order of the schema."
            )));
        }
        next = position;
        let Some(parameter) = declared.get(position) else {
            continue;
        };
        inputs.set(name.as_str(), typed(parameter, value)?);
    }
    Ok(inputs)
}

fn typed(parameter: &ParameterSchema, value: &CimValue) -> Result<CimValue, Fault> {
    match (parameter.value.arity, value) {
        (_, CimValue::Null) => Ok(CimValue::Null),
        (Arity::One, CimValue::Array(_)) => Err(schema_error(format!(
            "Parameter {} comes more than once and is no array.",
            parameter.name
        ))),
        (Arity::One, value) => scalar(parameter, value),
        (Arity::Many, CimValue::Array(values)) => values
            .iter()
            .map(|it| scalar(parameter, it))
            .collect::<Result<_, _>>()
            .map(CimValue::Array),
        (Arity::Many, value) => Ok(CimValue::Array(vec![scalar(parameter, value)?])),
    }
}

fn scalar(parameter: &ParameterSchema, value: &CimValue) -> Result<CimValue, Fault> {
    let wanted = parameter.value.cim_type;
    let mismatch = || {
        Fault::new(FaultCode::InvalidParameter)
            .with_wsman_code(wsman_code::PARAMETER_TYPE_MISMATCH)
            .because(format_args!("Parameter {} is no {wanted}.", parameter.name))
    };
    match (wanted, value) {
        (_, CimValue::Null) => Ok(CimValue::Null),
        (CimType::Reference, CimValue::Reference(_))
        | (CimType::Object, CimValue::Instance(_))
        | (CimType::Datetime, CimValue::Datetime(_) | CimValue::Interval(_)) => Ok(value.clone()),
        (CimType::Reference | CimType::Object, CimValue::Text(text)) if text.trim().is_empty() => {
            Ok(CimValue::Null)
        }
        // A tree where a text belongs, above all an embedded instance; or anything else where a reference belongs.
        (_, CimValue::Instance(_) | CimValue::Reference(_))
        | (CimType::Reference | CimType::Object, _) => Err(schema_error(format!(
            "Parameter {} does not have the form of its type.",
            parameter.name
        ))),
        (_, CimValue::Text(text)) => wanted.parse(text).ok_or_else(mismatch),
        _ => Err(mismatch()),
    }
}
