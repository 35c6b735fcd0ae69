//! Which instance: namespace, class and the values of its keys.

use std::collections::BTreeMap;

use super::{CimInstance, CimValue, ClassName, Namespace};

/// Names one instance, or a class where there are no keys. As text: [`CimPath::parse`], [`CimPath::to_text`].
#[derive(Debug, Clone, PartialEq)]
pub struct CimPath {
    /// Where the class is.
    pub namespace: Namespace,
    /// Class of the instance.
    pub class: ClassName,
    /// Values of keys by name.
    pub keys: BTreeMap<String, CimValue>,
}

impl CimPath {
    /// A path without keys.
    pub fn new(namespace: impl Into<Namespace>, class: impl Into<ClassName>) -> Self {
        Self {
            namespace: namespace.into(),
            class: class.into(),
            keys: BTreeMap::new(),
        }
    }

    /// The same with one key more, or another value of it.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<CimValue>) -> Self {
        self.keys.insert(key.into(), value.into());
        self
    }

    /// The text of a key, its name compared without case.
    pub fn key(&self, name: &str) -> Option<String> {
        self.key_value(name).and_then(CimValue::to_wire_text)
    }

    /// The value of a key, its name compared without case.
    pub fn key_value(&self, name: &str) -> Option<&CimValue> {
        self.keys.get(name).or_else(|| {
            let mut all = self.keys.iter();
            all.find(|it| it.0.eq_ignore_ascii_case(name))
                .map(|it| it.1)
        })
    }

    /// What tells this instance from any other: equal for two spellings of one path.
    ///
    /// Case does not count, doubled backslashes count as single (both are seen in what hosts send), the type of a value does
    /// not count, `__cimnamespace` is no key.
    pub fn id(&self) -> CimPathId {
        let mut text = String::with_capacity(128);
        fold_into(&mut text, self.namespace.as_str());
        text.push(':');
        fold_into(&mut text, self.class.as_str());
        let mut keys: Vec<(String, &CimValue)> = self
            .keys
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .filter(|it| it.0 != "__cimnamespace")
            .collect();
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, value) in keys {
            text.push('\n');
            text.push_str(&name);
            text.push('=');
            match value {
                CimValue::Reference(path) => text.push_str(path.id().as_str()),
                value => fold_into(&mut text, &value.to_wire_text().unwrap_or_default()),
            }
        }
        CimPathId(text)
    }

    /// Whether two paths name the same instance: see [`CimPath::id`].
    pub fn is_same(&self, other: &Self) -> bool {
        self.id() == other.id()
    }

    /// Whether an instance of this class has these keys, compared as in [`CimPath::id`].
    pub fn names(&self, instance: &CimInstance) -> bool {
        self.class == instance.class
            && self.keys.iter().all(|(name, value)| {
                let folded = |value: &CimValue| {
                    let mut text = String::new();
                    fold_into(&mut text, &value.to_wire_text().unwrap_or_default());
                    text
                };
                name.eq_ignore_ascii_case("__cimnamespace")
                    || instance
                        .get(name)
                        .is_some_and(|it| folded(it) == folded(value))
            })
    }
}

/// Lower case of all scripts, doubled backslashes collapsed.
fn fold_into(out: &mut String, text: &str) {
    let mut is_after_backslash = false;
    for character in text.chars() {
        if character == '\\' && is_after_backslash {
            is_after_backslash = false;
            continue;
        }
        is_after_backslash = character == '\\';
        if character.is_ascii() {
            out.push(character.to_ascii_lowercase());
        } else {
            out.extend(character.to_lowercase());
        }
    }
}

/// What tells one instance from any other; to be used as a key of maps, not to be shown or sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CimPathId(String);

impl CimPathId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
