//! What an enumeration gives: from its filter to rows.
//!
//! **Invariants.** Queries are checked against the schema before the provider is asked, and its answer is filtered again. That a
//! query was refused does not say why in its code: a bad class, a bad name and a missing namespace are one fault, as on Windows.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Caller;
use super::provider::CimProvider;
use crate::cim::{CimInstance, CimPath, CimValue, ClassName, Namespace};
use crate::message::{
    AssociationQuery, Enumerate, Fault, FaultCode, Filter, Items, Polymorphism, ResourceTarget,
    ResourceUri, hresult, wsman_code,
};
use crate::schema::{ClassSchema, SchemaSet};
use crate::wql::{Query, Related, RelatedExtent, Scope, Select};

/// One result, ready to be written.
#[derive(Debug)]
pub(super) enum Row {
    Object(Arc<SchemaSet>, CimInstance),
    Reference(CimPath),
    Both(Arc<SchemaSet>, CimInstance, CimPath),
    Fragment(CimInstance),
}

fn refused(reason: impl std::fmt::Display) -> Fault {
    Fault::new(FaultCode::CannotProcessFilter).because(reason)
}

/// Who asks whom about what.
pub(super) struct Question<'a> {
    pub(super) provider: &'a dyn CimProvider,
    pub(super) caller: &'a Caller,
    pub(super) resource: &'a ResourceUri,
    pub(super) selectors: &'a BTreeMap<String, CimValue>,
}

impl Question<'_> {
    fn namespace(&self) -> &Namespace {
        &self.resource.namespace
    }

    /// All rows of an enumeration.
    pub(super) fn rows(&self, enumerate: &Enumerate) -> Result<Vec<Row>, Fault> {
        match &enumerate.filter {
            Some(Filter::Wql(text)) => self.by_query(text, enumerate.items),
            Some(Filter::Association(query)) => {
                let schemas = self
                    .schemas()
                    .ok_or_else(|| refused("No such namespace."))?;
                self.related(&schemas, query, RelatedExtent::Instances, enumerate.items)
            }
            filter => {
                let selectors = match filter {
                    Some(Filter::Selectors(selectors)) => Some(selectors),
                    _ => None,
                };
                self.by_class(selectors, enumerate)
            }
        }
    }

    fn schemas(&self) -> Option<Arc<SchemaSet>> {
        self.provider.schema(self.namespace())
    }

    fn by_class(
        &self,
        selectors: Option<&BTreeMap<String, CimValue>>,
        enumerate: &Enumerate,
    ) -> Result<Vec<Row>, Fault> {
        let unknown = || {
            Fault::new(FaultCode::DestinationUnreachable)
                .with_wsman_code(wsman_code::INVALID_RESOURCE_URI)
        };
        let schemas = self.schemas().ok_or_else(|| {
            unknown().with_hresult(hresult::INVALID_NAMESPACE, "Invalid namespace")
        })?;
        let class = self.resource.class_name().ok_or_else(unknown)?;
        let schema = schemas
            .class(class)
            .ok_or_else(|| unknown().with_hresult(hresult::INVALID_CLASS, "Invalid class"))?;
        if let Some((name, _)) = selectors.and_then(|it| {
            let mut named = it.iter();
            named.find(|it| schema.property_folded(it.0).is_none())
        }) {
            return Err(refused(format_args!("{class} has no property {name:.60}.")));
        }
        let instances = self
            .provider
            .instances(self.namespace(), class, None, self.caller)?;
        let is_wanted = |instance: &CimInstance| {
            let is_class = match enumerate.polymorphism {
                Polymorphism::Include => schemas.is_a(&instance.class, class),
                Polymorphism::Exclude => instance.class == *class,
            };
            is_class && selectors.is_none_or(|it| has_values(instance, schema, it))
        };
        instances
            .into_iter()
            .filter(is_wanted)
            .map(|it| row(&schemas, it, enumerate.items))
            .collect()
    }

    fn by_query(&self, text: &str, items: Items) -> Result<Vec<Row>, Fault> {
        if self.resource.target != ResourceTarget::AllClasses || !self.selectors.is_empty() {
            return Err(Fault::new(FaultCode::DestinationUnreachable)
                .with_wsman_code(wsman_code::INVALID_URI_WMI_ENUM_WQL)
                .because(
                    "The class name must be '*' and there must be no keys when a query is run.",
                ));
        }
        let query = Query::parse(text).map_err(refused)?;
        let schemas = self
            .schemas()
            .ok_or_else(|| refused("No such namespace."))?;
        match query {
            Query::Select(select) => self.selected(&schemas, &select, items),
            Query::Related(Related { mut query, extent }) => {
                if query.object.namespace.is_unspecified() {
                    query.object.namespace = self.namespace().clone();
                }
                self.related(&schemas, &query, extent, items)
            }
        }
    }

    fn selected(
        &self,
        schemas: &Arc<SchemaSet>,
        select: &Select,
        items: Items,
    ) -> Result<Vec<Row>, Fault> {
        let schema = schemas
            .class(&select.class)
            .ok_or_else(|| refused(format_args!("No class {}.", select.class)))?;
        for name in select.named_properties() {
            if !name.name.starts_with("__") && schema.property_folded(&name.name).is_none() {
                return Err(refused(format_args!(
                    "{} has no property {:.60}.",
                    select.class, name.name
                )));
            }
        }
        let is_a = |class: &ClassName, ancestor: &ClassName| schemas.is_a(class, ancestor);
        let scope = Scope {
            server: self.provider.server_name(),
            is_a: &is_a,
        };
        let instances =
            self.provider
                .instances(self.namespace(), &select.class, Some(select), self.caller)?;
        instances
            .into_iter()
            .filter(|it| select.matches(it, &scope))
            .map(|it| {
                if items == Items::Objects && !select.properties.is_empty() {
                    return Ok(Row::Fragment(select.project(it)));
                }
                row(schemas, it, items)
            })
            .collect()
    }

    fn related(
        &self,
        schemas: &Arc<SchemaSet>,
        query: &AssociationQuery,
        extent: RelatedExtent,
        items: Items,
    ) -> Result<Vec<Row>, Fault> {
        if extent == RelatedExtent::Classes {
            return Err(refused(
                "ClassDefsOnly gives classes, which cannot be sent.",
            ));
        }
        let object = &query.object;
        let object_schemas = match object.namespace == *self.namespace() {
            true => schemas.clone(),
            false => self
                .provider
                .schema(&object.namespace)
                .ok_or_else(|| refused("No such namespace."))?,
        };
        let schema = object_schemas
            .class(&object.class)
            .ok_or_else(|| refused(format_args!("No class {}.", object.class)))?;
        check_keys(object, schema).map_err(|fault| refused(fault.reason))?;
        for class in query.association_class.iter().chain(&query.result_class) {
            if schemas.class(class).is_none() {
                return Err(refused(format_args!("No class {class}.")));
            }
        }
        let instances = self.provider.related(query, self.caller)?;
        instances
            .into_iter()
            .map(|it| {
                if extent == RelatedExtent::Keys && items == Items::Objects {
                    let path = path_of(schemas, &it)?;
                    let mut keys = CimInstance::new(it.class).in_namespace(it.namespace);
                    keys.properties = path.keys;
                    return Ok(Row::Fragment(keys));
                }
                row(schemas, it, items)
            })
            .collect()
    }
}

fn row(schemas: &Arc<SchemaSet>, instance: CimInstance, items: Items) -> Result<Row, Fault> {
    Ok(match items {
        Items::Objects => Row::Object(schemas.clone(), instance),
        Items::References => Row::Reference(path_of(schemas, &instance)?),
        Items::Both => {
            let path = path_of(schemas, &instance)?;
            Row::Both(schemas.clone(), instance, path)
        }
    })
}

/// The path of an instance, by the keys of its class.
fn path_of(schemas: &SchemaSet, instance: &CimInstance) -> Result<CimPath, Fault> {
    let broken = |what: String| Fault::new(FaultCode::InternalError).because(what);
    let schema = schemas.class(&instance.class).ok_or_else(|| {
        broken(format!(
            "The provider gave an instance of {}.",
            instance.class
        ))
    })?;
    let mut path = CimPath::new(schemas.namespace().clone(), schema.name.clone());
    for key in &schema.keys {
        let value = instance.get(key).ok_or_else(|| {
            broken(format!(
                "The provider gave {} without {key}.",
                instance.class
            ))
        })?;
        path.keys.insert(key.clone(), value.clone());
    }
    Ok(path)
}

/// Whether the properties have these values, compared as texts without case.
fn has_values(
    instance: &CimInstance,
    schema: &ClassSchema,
    wanted: &BTreeMap<String, CimValue>,
) -> bool {
    let path = CimPath {
        namespace: instance.namespace.clone(),
        class: instance.class.clone(),
        keys: wanted
            .iter()
            .filter_map(|(name, value)| {
                let exact = schema.property_folded(name)?.0;
                Some((exact.to_owned(), value.clone()))
            })
            .collect(),
    };
    path.names(instance)
}

/// Whether a path has exactly the keys of its class.
pub(super) fn check_keys(path: &CimPath, schema: &ClassSchema) -> Result<(), Fault> {
    check_names(path, schema)?;
    let missing = schema.keys.iter().find(|it| path.key_value(it).is_none());
    match missing {
        None => Ok(()),
        Some(key) => Err(Fault::new(FaultCode::DestinationUnreachable)
            .with_wsman_code(wsman_code::INSUFFICIENT_SELECTORS)
            .with_detail("InsufficientSelectors")
            .because(format_args!("{} is not selected by {key}.", schema.name))),
    }
}

/// Whether a path has no keys but those of its class.
pub(super) fn check_names(path: &CimPath, schema: &ClassSchema) -> Result<(), Fault> {
    match path.keys.keys().find(|it| !schema.is_key(it)) {
        None => Ok(()),
        Some(name) => Err(Fault::new(FaultCode::InvalidSelectors)
            .with_wsman_code(wsman_code::UNEXPECTED_SELECTORS)
            .with_detail("UnexpectedSelectors")
            .because(format_args!("{} has no key {name:.60}.", schema.name))),
    }
}
