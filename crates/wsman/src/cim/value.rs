//! A value of CIM, and the types that a property can have.

use std::fmt;

use super::{CimDatetime, CimInstance, CimInterval, CimPath};

/// Type of a property or parameter as MOF names it (DSP0004 §5.2). Arrays are said beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of MOF")]
pub enum CimType {
    Boolean,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Sint8,
    Sint16,
    Sint32,
    Sint64,
    Real32,
    Real64,
    Char16,
    String,
    Datetime,
    /// A path.
    Reference,
    /// An instance that stands in the message as an element tree.
    Object,
}

impl CimType {
    /// As CIM-XML spells it in `TYPE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Boolean => "boolean",
            Self::Uint8 => "uint8",
            Self::Uint16 => "uint16",
            Self::Uint32 => "uint32",
            Self::Uint64 => "uint64",
            Self::Sint8 => "sint8",
            Self::Sint16 => "sint16",
            Self::Sint32 => "sint32",
            Self::Sint64 => "sint64",
            Self::Real32 => "real32",
            Self::Real64 => "real64",
            Self::Char16 => "char16",
            Self::String => "string",
            Self::Datetime => "datetime",
            Self::Reference => "reference",
            Self::Object => "object",
        }
    }

    /// The type that CIM-XML or MOF spells so, if any; case does not count.
    pub fn from_name(name: &str) -> Option<Self> {
        ALL.iter()
            .copied()
            .find(|it| it.as_str().eq_ignore_ascii_case(name))
    }

    /// Whether a value of ours can stand for this type. `Null` fits all, `Text` fits what is read from text.
    pub fn fits(self, value: &CimValue) -> bool {
        match value {
            CimValue::Null => true,
            CimValue::Boolean(_) => self == Self::Boolean,
            CimValue::Uint(value) => match self.integer_range() {
                Some((_, most)) => *value <= most,
                None => matches!(self, Self::Real32 | Self::Real64),
            },
            CimValue::Sint(value) => match self.integer_range() {
                Some((least, most)) => match u64::try_from(*value) {
                    Ok(positive) => positive <= most,
                    Err(_) => *value >= least,
                },
                None => matches!(self, Self::Real32 | Self::Real64),
            },
            CimValue::Real(_) => matches!(self, Self::Real32 | Self::Real64),
            CimValue::Text(_) => matches!(self, Self::String | Self::Char16),
            CimValue::Datetime(_) | CimValue::Interval(_) => self == Self::Datetime,
            CimValue::Reference(_) => self == Self::Reference,
            CimValue::Instance(_) => self == Self::Object,
            CimValue::Array(_) => false,
        }
    }

    /// The least and the greatest value of an integer type.
    pub fn integer_range(self) -> Option<(i64, u64)> {
        let positive = |value: i64| u64::try_from(value).unwrap_or(0);
        match self {
            Self::Uint8 => Some((0, u8::MAX.into())),
            Self::Uint16 => Some((0, u16::MAX.into())),
            Self::Uint32 => Some((0, u32::MAX.into())),
            Self::Uint64 => Some((0, u64::MAX)),
            Self::Sint8 => Some((i8::MIN.into(), positive(i8::MAX.into()))),
            Self::Sint16 => Some((i16::MIN.into(), positive(i16::MAX.into()))),
            Self::Sint32 => Some((i32::MIN.into(), positive(i32::MAX.into()))),
            Self::Sint64 => Some((i64::MIN, positive(i64::MAX))),
            _ => None,
        }
    }

    /// Reads a value of this type from the text of the wire; `None` if the text is no such value.
    ///
    /// References and objects are no text and give `None`.
    pub fn parse(self, text: &str) -> Option<CimValue> {
        let trimmed = text.trim();
        match self {
            Self::String => Some(CimValue::Text(text.to_owned())),
            Self::Char16 => (text.chars().count() == 1).then(|| CimValue::Text(text.to_owned())),
            Self::Boolean => parse_boolean(trimmed).map(CimValue::Boolean),
            Self::Real32 | Self::Real64 => trimmed
                .parse::<f64>()
                .ok()
                .filter(|it| it.is_finite())
                .map(CimValue::Real),
            Self::Datetime => CimDatetime::parse(trimmed)
                .map(CimValue::Datetime)
                .or_else(|| CimInterval::parse(trimmed).map(CimValue::Interval)),
            Self::Reference | Self::Object => None,
            _ => {
                let (least, most) = self.integer_range()?;
                let value = if least < 0 {
                    trimmed.parse::<i64>().ok().map(CimValue::Sint)
                } else {
                    trimmed.parse::<u64>().ok().map(CimValue::Uint)
                }?;
                let is_inside = match value {
                    CimValue::Uint(value) => value <= most,
                    CimValue::Sint(value) => {
                        value >= least
                            && (value < 0 || u64::try_from(value).is_ok_and(|it| it <= most))
                    }
                    _ => false,
                };
                is_inside.then_some(value)
            }
        }
    }
}

const ALL: [CimType; 16] = [
    CimType::Boolean,
    CimType::Uint8,
    CimType::Uint16,
    CimType::Uint32,
    CimType::Uint64,
    CimType::Sint8,
    CimType::Sint16,
    CimType::Sint32,
    CimType::Sint64,
    CimType::Real32,
    CimType::Real64,
    CimType::Char16,
    CimType::String,
    CimType::Datetime,
    CimType::Reference,
    CimType::Object,
];

impl fmt::Display for CimType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `true` and `false` in any case: `TRUE` appears in embedded text.
pub(crate) fn parse_boolean(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

/// A value of a property, a parameter or a key.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum CimValue {
    /// No value.
    #[default]
    Null,
    /// `boolean`.
    Boolean(bool),
    /// Any unsigned integer.
    Uint(u64),
    /// Any signed integer.
    Sint(i64),
    /// Any real; finite.
    Real(f64),
    /// A string; or any scalar as it came off the wire.
    Text(String),
    /// A point in time.
    Datetime(CimDatetime),
    /// A span of time.
    Interval(CimInterval),
    /// The path of another instance.
    Reference(Box<CimPath>),
    /// An instance as a value, written as an element tree. Embedded instances that are strings are [`CimValue::Text`].
    Instance(Box<CimInstance>),
    /// Several scalars of one kind.
    Array(Vec<CimValue>),
}

impl CimValue {
    /// Whether there is no value.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The text of a scalar as the wire has it; `None` for null, references, instances and arrays.
    pub fn to_wire_text(&self) -> Option<String> {
        match self {
            Self::Boolean(value) => Some(value.to_string()),
            Self::Uint(value) => Some(value.to_string()),
            Self::Sint(value) => Some(value.to_string()),
            Self::Real(value) => Some(format_real(*value)),
            Self::Text(value) => Some(value.clone()),
            Self::Datetime(value) => Some(value.to_iso()),
            Self::Interval(value) => Some(value.to_iso()),
            Self::Null | Self::Reference(_) | Self::Instance(_) | Self::Array(_) => None,
        }
    }

    /// What kind of value it is, for messages.
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean(_) => "boolean",
            Self::Uint(_) => "unsigned integer",
            Self::Sint(_) => "signed integer",
            Self::Real(_) => "real",
            Self::Text(_) => "text",
            Self::Datetime(_) => "datetime",
            Self::Interval(_) => "interval",
            Self::Reference(_) => "reference",
            Self::Instance(_) => "instance",
            Self::Array(_) => "array",
        }
    }
}

/// The shortest text that reads back as the same value.
pub(crate) fn format_real(value: f64) -> String {
    format!("{value:?}")
}

macro_rules! from_number {
    ($variant:ident: $($type:ty),*) => {
        $(impl From<$type> for CimValue {
            fn from(value: $type) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}

from_number!(Uint: u8, u16, u32, u64);
from_number!(Sint: i8, i16, i32, i64);
from_number!(Real: f32, f64);
from_number!(Text: &str, String);

impl From<bool> for CimValue {
    fn from(value: bool) -> Self {
        Self::Boolean(value)
    }
}

impl From<&String> for CimValue {
    fn from(value: &String) -> Self {
        Self::Text(value.clone())
    }
}

impl From<CimDatetime> for CimValue {
    fn from(value: CimDatetime) -> Self {
        Self::Datetime(value)
    }
}

impl From<CimInterval> for CimValue {
    fn from(value: CimInterval) -> Self {
        Self::Interval(value)
    }
}

impl From<CimPath> for CimValue {
    fn from(value: CimPath) -> Self {
        Self::Reference(Box::new(value))
    }
}

impl From<&CimPath> for CimValue {
    fn from(value: &CimPath) -> Self {
        Self::Reference(Box::new(value.clone()))
    }
}

impl From<CimInstance> for CimValue {
    fn from(value: CimInstance) -> Self {
        Self::Instance(Box::new(value))
    }
}

impl<T: Into<CimValue>> From<Vec<T>> for CimValue {
    fn from(values: Vec<T>) -> Self {
        Self::Array(values.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<CimValue>> From<Option<T>> for CimValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}
