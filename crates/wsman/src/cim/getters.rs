//! Typed reading of properties: what came off the wire is text, and becomes a value where somebody asks for it.
//!
//! **Invariants.** Each error names class and property. A getter without `opt_` takes no null; of an array, null is the empty one.
//! An array keeps its length: hosts send arrays that belong together place by place.

use std::str::FromStr;

use super::value::parse_boolean;
use super::{CimDatetime, CimInstance, CimInterval, CimPath, CimValue, Namespace, embedded};
use crate::{Error, ErrorKind, Result};

/// Longest piece of a value that a message repeats, in characters.
const EXCERPT_CHARS: usize = 60;

/// The beginning of a text from elsewhere, for messages.
pub(crate) fn excerpt(text: &str) -> String {
    let mut shown: String = text.chars().take(EXCERPT_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

fn describe(value: &CimValue) -> String {
    value
        .to_wire_text()
        .map_or_else(|| value.kind_name().to_owned(), |text| excerpt(&text))
}

fn as_unsigned(value: &CimValue) -> Option<u64> {
    match value {
        CimValue::Uint(value) => Some(*value),
        CimValue::Sint(value) => u64::try_from(*value).ok(),
        CimValue::Text(text) => u64::from_str(text.trim()).ok(),
        _ => None,
    }
}

fn as_signed(value: &CimValue) -> Option<i64> {
    match value {
        CimValue::Sint(value) => Some(*value),
        CimValue::Uint(value) => i64::try_from(*value).ok(),
        CimValue::Text(text) => i64::from_str(text.trim()).ok(),
        _ => None,
    }
}

fn as_text(value: &CimValue) -> Option<String> {
    value.to_wire_text()
}

fn as_real(value: &CimValue) -> Option<f64> {
    match value {
        CimValue::Real(value) => Some(*value),
        CimValue::Text(text) => f64::from_str(text.trim()).ok().filter(|it| it.is_finite()),
        _ => None,
    }
}

fn as_bool(value: &CimValue) -> Option<bool> {
    match value {
        CimValue::Boolean(value) => Some(*value),
        CimValue::Text(text) => parse_boolean(text.trim()),
        _ => None,
    }
}

fn as_datetime(value: &CimValue) -> Option<CimDatetime> {
    match value {
        CimValue::Datetime(value) => Some(*value),
        CimValue::Text(text) => CimDatetime::parse(text.trim()),
        _ => None,
    }
}

fn as_interval(value: &CimValue) -> Option<CimInterval> {
    match value {
        CimValue::Interval(value) => Some(*value),
        CimValue::Text(text) => CimInterval::parse(text.trim()),
        _ => None,
    }
}

fn as_instance(value: &CimValue) -> Option<CimInstance> {
    match value {
        CimValue::Instance(instance) => Some((**instance).clone()),
        CimValue::Text(text) => embedded::read(text).ok(),
        _ => None,
    }
}

impl CimInstance {
    fn absent(&self, property: &str, wanted: &str) -> Error {
        Error::wrong_type(format!(
            "{}.{property}: absent, {wanted} expected",
            self.class
        ))
    }

    fn wrong(&self, property: &str, wanted: &str, value: &CimValue) -> Error {
        Error::wrong_type(format!(
            "{}.{property}: {} where {wanted} is expected",
            self.class,
            describe(value)
        ))
    }

    fn one<T>(
        &self,
        property: &str,
        wanted: &str,
        read: impl Fn(&CimValue) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(property)
            .map(|value| read(value).ok_or_else(|| self.wrong(property, wanted, value)))
            .transpose()
    }

    fn must<T>(
        &self,
        property: &str,
        wanted: &str,
        read: impl Fn(&CimValue) -> Option<T>,
    ) -> Result<T> {
        self.one(property, wanted, read)?
            .ok_or_else(|| self.absent(property, wanted))
    }

    fn many<T>(
        &self,
        property: &str,
        wanted: &str,
        read: impl Fn(&CimValue) -> Option<T>,
    ) -> Result<Vec<T>> {
        let values = match self.get(property) {
            None => &[],
            Some(CimValue::Array(values)) => values.as_slice(),
            // The wire cannot tell an array of one from a scalar.
            Some(value) => std::slice::from_ref(value),
        };
        values
            .iter()
            .map(|value| read(value).ok_or_else(|| self.wrong(property, wanted, value)))
            .collect()
    }

    /// A text; any scalar has one.
    ///
    /// # Errors
    /// As all getters: [`ErrorKind::Type`] where the property is absent (without `opt_`) or no such value.
    pub fn text(&self, property: &str) -> Result<String> {
        self.must(property, "a text", as_text)
    }

    /// A text or nothing.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn opt_text(&self, property: &str) -> Result<Option<String>> {
        self.one(property, "a text", as_text)
    }

    /// A text without a copy, if the property is one. For hot loops; numbers that were never text have none.
    pub fn text_ref(&self, property: &str) -> Option<&str> {
        match self.get(property)? {
            CimValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Texts; none where the property is absent, an empty one for a null among them, so that parallel arrays stay parallel.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn texts(&self, property: &str) -> Result<Vec<String>> {
        self.many(property, "texts", |value| match value {
            CimValue::Null => Some(String::new()),
            value => as_text(value),
        })
    }

    /// An unsigned integer.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn u64(&self, property: &str) -> Result<u64> {
        self.must(property, "an unsigned integer", as_unsigned)
    }

    /// An unsigned integer or nothing.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn opt_u64(&self, property: &str) -> Result<Option<u64>> {
        self.one(property, "an unsigned integer", as_unsigned)
    }

    /// Unsigned integers; none where the property is absent.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn u64s(&self, property: &str) -> Result<Vec<u64>> {
        self.many(property, "unsigned integers", as_unsigned)
    }

    /// An integer of 32 bits without sign.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn u32(&self, property: &str) -> Result<u32> {
        self.must(property, "a uint32", |it| {
            as_unsigned(it).and_then(|it| it.try_into().ok())
        })
    }

    /// An integer of 32 bits without sign, or nothing.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn opt_u32(&self, property: &str) -> Result<Option<u32>> {
        self.one(property, "a uint32", |it| {
            as_unsigned(it).and_then(|it| it.try_into().ok())
        })
    }

    /// An integer of 16 bits without sign.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn u16(&self, property: &str) -> Result<u16> {
        self.must(property, "a uint16", |it| {
            as_unsigned(it).and_then(|it| it.try_into().ok())
        })
    }

    /// An integer of 16 bits without sign, or nothing.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn opt_u16(&self, property: &str) -> Result<Option<u16>> {
        self.one(property, "a uint16", |it| {
            as_unsigned(it).and_then(|it| it.try_into().ok())
        })
    }

    /// Integers of 16 bits without sign; none where the property is absent.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn u16s(&self, property: &str) -> Result<Vec<u16>> {
        self.many(property, "uint16s", |it| {
            as_unsigned(it).and_then(|it| it.try_into().ok())
        })
    }

    /// A signed integer. Some properties are unsigned by schema and come as `-1` all the same: read those with this.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn i64(&self, property: &str) -> Result<i64> {
        self.must(property, "an integer", as_signed)
    }

    /// A signed integer or nothing.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn opt_i64(&self, property: &str) -> Result<Option<i64>> {
        self.one(property, "an integer", as_signed)
    }

    /// A real or nothing.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn opt_real(&self, property: &str) -> Result<Option<f64>> {
        self.one(property, "a real", as_real)
    }

    /// A boolean.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn bool(&self, property: &str) -> Result<bool> {
        self.must(property, "a boolean", as_bool)
    }

    /// A boolean or nothing.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn opt_bool(&self, property: &str) -> Result<Option<bool>> {
        self.one(property, "a boolean", as_bool)
    }

    /// A point in time or nothing; the date that stands for none is nothing.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn opt_datetime(&self, property: &str) -> Result<Option<CimDatetime>> {
        let value = self.one(property, "a datetime", as_datetime)?;
        Ok(value.filter(|it| !it.is_none()))
    }

    /// A span of time or nothing.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn opt_interval(&self, property: &str) -> Result<Option<CimInterval>> {
        self.one(property, "an interval", as_interval)
    }

    fn as_path(&self, value: &CimValue) -> Option<CimPath> {
        match value {
            CimValue::Reference(path) => Some((**path).clone()),
            CimValue::Text(text) => CimPath::parse(text, &self.namespace).ok(),
            _ => None,
        }
    }

    /// A path: a reference, or a text that is an object path (as in `Parent`). What the text leaves out of the namespace is this
    /// instance's.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn reference(&self, property: &str) -> Result<CimPath> {
        self.must(property, "a reference", |it| self.as_path(it))
    }

    /// A path or nothing; an empty text is nothing.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn opt_reference(&self, property: &str) -> Result<Option<CimPath>> {
        if self.text_ref(property).is_some_and(str::is_empty) {
            return Ok(None);
        }
        self.one(property, "a reference", |it| self.as_path(it))
    }

    /// Paths; none where the property is absent.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn references(&self, property: &str) -> Result<Vec<CimPath>> {
        self.many(property, "references", |it| self.as_path(it))
    }

    /// An embedded instance, as a tree or as CIM-XML text, or nothing; an empty text is nothing.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn opt_instance(&self, property: &str) -> Result<Option<CimInstance>> {
        if self.text_ref(property).is_some_and(str::is_empty) {
            return Ok(None);
        }
        self.one(property, "an embedded instance", as_instance)
    }

    /// Embedded instances, as trees or as CIM-XML text; none where the property is absent.
    ///
    /// # Errors
    /// As [`CimInstance::text`].
    pub fn instances(&self, property: &str) -> Result<Vec<CimInstance>> {
        self.many(property, "embedded instances", as_instance)
    }

    /// The path of this instance, by the names of its keys.
    ///
    /// # Errors
    /// [`ErrorKind::Type`] where a key is absent.
    pub fn path(&self, keys: &[&str]) -> Result<CimPath> {
        let mut path = CimPath::new(self.namespace.clone(), self.class.clone());
        for key in keys {
            let value = self.get(key).ok_or_else(|| {
                Error::new(
                    ErrorKind::Type,
                    format!("{}.{key}: absent, and a key", self.class),
                )
            })?;
            path.keys.insert((*key).to_owned(), value.clone());
        }
        Ok(path)
    }

    /// The same in another namespace or with it said, for all references as texts below to be read against.
    #[must_use]
    pub fn or_in_namespace(mut self, namespace: &Namespace) -> Self {
        if self.namespace.is_unspecified() {
            self.namespace = namespace.clone();
        }
        self
    }
}
