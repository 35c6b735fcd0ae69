//! Filters of enumerations, in the three dialects that Windows knows.

use std::collections::BTreeMap;

use super::value::{
    ReferenceForm, read_reference, read_selectors, write_reference_children, write_selectors,
};
use super::{Fault, FaultCode};
use crate::cim::{CimPath, CimValue, ClassName, Namespace};
use crate::xml::{Element, XmlWriter, namespace};

/// Name of the dialect of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// WQL.
    Wql,
    /// By values of properties.
    Selector,
    /// By association.
    Association,
}

impl Dialect {
    /// As `Dialect` has it.
    pub fn uri(self) -> &'static str {
        match self {
            Self::Wql => "http://schemas.microsoft.com/wbem/wsman/1/WQL",
            Self::Selector => "http://schemas.dmtf.org/wbem/wsman/1/wsman/SelectorFilter",
            Self::Association => {
                "http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter"
            }
        }
    }

    fn of(uri: &str) -> Option<Self> {
        [Self::Wql, Self::Selector, Self::Association]
            .into_iter()
            .find(|it| it.uri().eq_ignore_ascii_case(uri.trim()))
    }
}

/// Whether the instances at the other end are wanted, or the associations themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Association {
    /// `AssociatedInstances`, `ASSOCIATORS OF`.
    Associators,
    /// `AssociationInstances`, `REFERENCES OF`.
    References,
}

/// What is related to one instance.
#[derive(Debug, Clone, PartialEq)]
pub struct AssociationQuery {
    /// Which end.
    pub kind: Association,
    /// Whose relations.
    pub object: CimPath,
    /// Only through this association.
    pub association_class: Option<ClassName>,
    /// Only results of this class.
    pub result_class: Option<ClassName>,
    /// Only where the instance plays this part.
    pub role: Option<String>,
    /// Only where the result plays this part.
    pub result_role: Option<String>,
}

impl AssociationQuery {
    /// All that is related to an instance.
    pub fn of(kind: Association, object: CimPath) -> Self {
        Self {
            kind,
            object,
            association_class: None,
            result_class: None,
            role: None,
            result_role: None,
        }
    }

    /// The same through one association.
    #[must_use]
    pub fn through(mut self, class: impl Into<ClassName>) -> Self {
        self.association_class = Some(class.into());
        self
    }

    /// The same with one class of results.
    #[must_use]
    pub fn giving(mut self, class: impl Into<ClassName>) -> Self {
        self.result_class = Some(class.into());
        self
    }
}

/// What is wanted of an enumeration.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// A query.
    Wql(String),
    /// Instances whose properties have these values.
    Selectors(BTreeMap<String, CimValue>),
    /// What is related to an instance.
    Association(AssociationQuery),
}

impl Filter {
    /// Writes `w:Filter`.
    pub fn write(&self, out: &mut XmlWriter) {
        let dialect = match self {
            Self::Wql(_) => Dialect::Wql,
            Self::Selectors(_) => Dialect::Selector,
            Self::Association(_) => Dialect::Association,
        };
        out.open("w", "Filter")
            .attribute("Dialect", dialect.uri())
            .raw(">");
        match self {
            Self::Wql(query) => {
                out.text(query);
            }
            Self::Selectors(selectors) => write_selectors(out, selectors),
            Self::Association(query) => write_association(out, query),
        }
        out.raw("</w:Filter>");
    }

    /// Reads `w:Filter`.
    ///
    /// # Errors
    /// The fault that goes with what is wrong.
    pub fn read(filter: Element<'_, '_>, default: &Namespace) -> Result<Self, Fault> {
        let dialect = filter
            .attribute("", "Dialect")
            .and_then(Dialect::of)
            .ok_or_else(|| Fault::new(FaultCode::FilterDialectRequestedUnavailable))?;
        let bad = || Fault::new(FaultCode::CannotProcessFilter);
        match dialect {
            Dialect::Wql => Ok(Self::Wql(filter.trimmed().to_owned())),
            Dialect::Selector => {
                let set = filter
                    .child(namespace::WSMAN, "SelectorSet")
                    .ok_or_else(bad)?;
                let selectors = read_selectors(set, ReferenceForm::DirectOrWrapped);
                selectors.map(Self::Selectors).map_err(|_| bad())
            }
            Dialect::Association => read_association(filter, default).ok_or_else(bad),
        }
    }
}

fn write_association(out: &mut XmlWriter, query: &AssociationQuery) {
    let name = match query.kind {
        Association::Associators => "AssociatedInstances",
        Association::References => "AssociationInstances",
    };
    out.open("b", name)
        .attribute("xmlns:b", namespace::BINDING)
        .raw("><b:Object>");
    write_reference_children(out, &query.object);
    out.raw("</b:Object>");
    if let Some(class) = &query.association_class {
        out.element("b", "AssociationClassName", class.as_str());
    }
    if let Some(role) = &query.role {
        out.element("b", "Role", role);
    }
    if let Some(class) = &query.result_class {
        out.element("b", "ResultClassName", class.as_str());
    }
    if let Some(role) = &query.result_role {
        out.element("b", "ResultRole", role);
    }
    out.end("b", name);
}

fn read_association(filter: Element<'_, '_>, default: &Namespace) -> Option<Filter> {
    let (kind, inner) = [
        (Association::Associators, "AssociatedInstances"),
        (Association::References, "AssociationInstances"),
    ]
    .into_iter()
    .find_map(|(kind, name)| Some((kind, filter.child(namespace::BINDING, name)?)))?;
    let object = inner.child(namespace::BINDING, "Object")?;
    let object = read_reference(object, default, ReferenceForm::DirectOrWrapped).ok()?;
    // Two spellings of the class are about.
    let text = |name: &str| {
        let found = inner
            .children()
            .find(|it| it.local().eq_ignore_ascii_case(name))?;
        Some(found.trimmed().to_owned()).filter(|it| !it.is_empty())
    };
    let mut query = AssociationQuery::of(kind, object);
    query.association_class = text("AssociationClassName").map(ClassName::new);
    query.result_class = text("ResultClassName").map(ClassName::new);
    query.role = text("Role");
    query.result_role = text("ResultRole");
    Some(Filter::Association(query))
}
