//! Whether an instance meets a condition.
//!
//! **Invariant.** Recursion is as deep as the query, which is bounded. An instance that cannot be compared does not match: a query
//! never fails on data.

use std::cmp::Ordering;

use super::{Comparison, Condition, Literal, PropertyName, Select};
use crate::cim::{CimDatetime, CimInstance, CimInterval, CimValue, ClassName, embedded};

/// What conditions ask about beside the instance.
pub struct Scope<'a> {
    /// Name of the host, for `__SERVER`.
    pub server: &'a str,
    /// Whether one class is the other or inherits from it.
    pub is_a: &'a dyn Fn(&ClassName, &ClassName) -> bool,
}

impl std::fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scope")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Select {
    /// Whether an instance is of the class and meets the condition.
    pub fn matches(&self, instance: &CimInstance, scope: &Scope<'_>) -> bool {
        (scope.is_a)(&instance.class, &self.class)
            && self
                .condition
                .as_ref()
                .is_none_or(|it| it.matches(instance, scope))
    }

    /// The properties that the query names, of an instance; the instance itself for `*`.
    #[must_use]
    pub fn project(&self, instance: CimInstance) -> CimInstance {
        if self.properties.is_empty() {
            return instance;
        }
        let mut chosen = CimInstance::new(instance.class.clone()).in_namespace(&instance.namespace);
        for name in &self.properties {
            // The case of the class counts on the wire, not that of the query.
            if let Some((exact, value)) = lookup_folded(&instance, &name.name) {
                chosen.set(exact, value.clone());
            }
        }
        chosen
    }
}

fn lookup_folded<'i>(instance: &'i CimInstance, name: &str) -> Option<(&'i str, &'i CimValue)> {
    if let Some((exact, value)) = instance.properties.get_key_value(name) {
        return Some((exact, value));
    }
    let mut all = instance.properties.iter();
    all.find(|it| it.0.eq_ignore_ascii_case(name))
        .map(|(exact, value)| (exact.as_str(), value))
}

impl Condition {
    /// Whether it holds for an instance.
    pub fn matches(&self, instance: &CimInstance, scope: &Scope<'_>) -> bool {
        match self {
            Self::All(inner) => inner.iter().all(|it| it.matches(instance, scope)),
            Self::Any(inner) => inner.iter().any(|it| it.matches(instance, scope)),
            Self::Not(inner) => !inner.matches(instance, scope),
            Self::Compare(name, comparison, literal) => on_value(instance, name, scope, |value| {
                compares(value, *comparison, literal, scope)
            }),
            Self::Like(name, pattern) => on_value(instance, name, scope, |value| {
                value
                    .to_wire_text()
                    .is_some_and(|text| pattern.matches(&text))
            }),
            Self::IsNull(name) => !on_value(instance, name, scope, |value| !value.is_null()),
            Self::IsA(name, class) => is_a(instance, name, class, scope),
        }
    }
}

/// Asks something of the value that a name leads to; false where it leads to nothing.
fn on_value(
    instance: &CimInstance,
    name: &PropertyName,
    scope: &Scope<'_>,
    ask: impl Fn(&CimValue) -> bool,
) -> bool {
    if name.inside.is_empty() && name.name.starts_with("__") {
        return match name.name.to_ascii_uppercase().as_str() {
            "__SERVER" => ask(&CimValue::from(scope.server)),
            "__CLASS" => ask(&CimValue::from(instance.class.as_str())),
            "__NAMESPACE" => ask(&CimValue::from(
                instance.namespace.as_str().replace('/', "\\"),
            )),
            _ => false,
        };
    }
    let Some((_, value)) = lookup_folded(instance, &name.name) else {
        return false;
    };
    let Some((next, rest)) = name.inside.split_first() else {
        return ask(value);
    };
    let inner = PropertyName {
        name: next.clone(),
        inside: rest.to_vec(),
    };
    match value {
        CimValue::Instance(instance) => on_value(instance, &inner, scope, ask),
        CimValue::Text(text) => {
            embedded::read(text).is_ok_and(|instance| on_value(&instance, &inner, scope, ask))
        }
        _ => false,
    }
}

fn is_a(instance: &CimInstance, name: &PropertyName, class: &ClassName, scope: &Scope<'_>) -> bool {
    if name.inside.is_empty() && name.name.eq_ignore_ascii_case("__this") {
        return (scope.is_a)(&instance.class, class);
    }
    on_value(instance, name, scope, |value| match value {
        CimValue::Instance(inner) => (scope.is_a)(&inner.class, class),
        CimValue::Text(text) => {
            embedded::read(text).is_ok_and(|inner| (scope.is_a)(&inner.class, class))
        }
        _ => false,
    })
}

fn compares(
    value: &CimValue,
    comparison: Comparison,
    literal: &Literal,
    scope: &Scope<'_>,
) -> bool {
    let Some(order) = order(value, literal, scope) else {
        return false;
    };
    match comparison {
        Comparison::Equal => order == Ordering::Equal,
        Comparison::NotEqual => order != Ordering::Equal,
        Comparison::Less => order == Ordering::Less,
        Comparison::LessOrEqual => order != Ordering::Greater,
        Comparison::Greater => order == Ordering::Greater,
        Comparison::GreaterOrEqual => order != Ordering::Less,
    }
}

/// How a value stands to a literal; `None` where they cannot be compared.
fn order(value: &CimValue, literal: &Literal, scope: &Scope<'_>) -> Option<Ordering> {
    match literal {
        Literal::Null => None,
        Literal::Server => order_text(value, scope.server),
        Literal::Text(text) => order_text(value, text),
        Literal::Boolean(wanted) => match value {
            CimValue::Boolean(value) => Some(value.cmp(wanted)),
            CimValue::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" => Some(true.cmp(wanted)),
                "false" => Some(false.cmp(wanted)),
                _ => None,
            },
            _ => None,
        },
        Literal::Integer(wanted) => match integer(value) {
            Some(value) => Some(value.cmp(wanted)),
            #[expect(
                clippy::cast_precision_loss,
                reason = "compared with a real, which has no more"
            )]
            None => real(value)?.partial_cmp(&(*wanted as f64)),
        },
        Literal::Real(wanted) => real(value)?.partial_cmp(wanted),
    }
}

fn integer(value: &CimValue) -> Option<i128> {
    match value {
        CimValue::Uint(value) => Some((*value).into()),
        CimValue::Sint(value) => Some((*value).into()),
        CimValue::Boolean(value) => Some((*value).into()),
        CimValue::Text(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn real(value: &CimValue) -> Option<f64> {
    match value {
        CimValue::Real(value) => Some(*value),
        CimValue::Text(text) => text.trim().parse().ok(),
        #[expect(
            clippy::cast_precision_loss,
            reason = "compared with a real, which has no more"
        )]
        other => integer(other).map(|it| it as f64),
    }
}

fn order_text(value: &CimValue, wanted: &str) -> Option<Ordering> {
    match value {
        CimValue::Text(text) => Some(compare_folded(text, wanted)),
        CimValue::Datetime(value) => Some(value.cmp(&CimDatetime::parse(wanted.trim())?)),
        CimValue::Interval(value) => Some(value.cmp(&CimInterval::parse(wanted.trim())?)),
        CimValue::Boolean(value) => match wanted.trim().to_ascii_lowercase().as_str() {
            "true" | "1" => Some(value.cmp(&true)),
            "false" | "0" => Some(value.cmp(&false)),
            _ => None,
        },
        CimValue::Uint(_) | CimValue::Sint(_) => {
            Some(integer(value)?.cmp(&wanted.trim().parse().ok()?))
        }
        CimValue::Real(value) => value.partial_cmp(&wanted.trim().parse().ok()?),
        // A reference compares with a path in any spelling; it has no order.
        CimValue::Reference(path) => {
            let wanted = crate::cim::CimPath::parse(wanted, &path.namespace).ok()?;
            Some(if path.is_same(&wanted) {
                Ordering::Equal
            } else {
                path.id().cmp(&wanted.id())
            })
        }
        CimValue::Null | CimValue::Instance(_) | CimValue::Array(_) => None,
    }
}

/// Compares texts without case, character by character.
fn compare_folded(a: &str, b: &str) -> Ordering {
    if a.is_ascii() && b.is_ascii() {
        let fold = |it: u8| it.to_ascii_lowercase();
        return a.bytes().map(fold).cmp(b.bytes().map(fold));
    }
    a.chars()
        .flat_map(char::to_lowercase)
        .cmp(b.chars().flat_map(char::to_lowercase))
}
