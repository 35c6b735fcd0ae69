//! An instance: a class and the values of its properties.

use std::collections::BTreeMap;

use super::{CimValue, ClassName, Namespace};

/// What is known of one instance. Its getters are typed: see [`CimInstance::text`] and those beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct CimInstance {
    /// Its class.
    pub class: ClassName,
    /// Where the class is; [`Namespace::unspecified`] in embedded instances and in what the caller makes.
    pub namespace: Namespace,
    /// Values by the exact name of the property. Absent and [`CimValue::Null`] mean the same.
    pub properties: BTreeMap<String, CimValue>,
}

impl CimInstance {
    /// One without any property.
    pub fn new(class: impl Into<ClassName>) -> Self {
        Self {
            class: class.into(),
            namespace: Namespace::unspecified(),
            properties: BTreeMap::new(),
        }
    }

    /// The same in this namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: impl Into<Namespace>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// The same with one property more, or another value of it.
    #[must_use]
    pub fn with(mut self, property: impl Into<String>, value: impl Into<CimValue>) -> Self {
        self.set(property, value);
        self
    }

    /// Sets a property.
    pub fn set(&mut self, property: impl Into<String>, value: impl Into<CimValue>) {
        self.properties.insert(property.into(), value.into());
    }

    /// The value of a property; `None` where it is absent or null.
    pub fn get(&self, property: &str) -> Option<&CimValue> {
        self.properties.get(property).filter(|it| !it.is_null())
    }
}
