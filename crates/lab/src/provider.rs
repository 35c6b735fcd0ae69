//! The estate seen as CIM: what one host answers about itself, its VMs and its cluster.
//!
//! ```text
//!   WsmanService ─► HostProvider: CimProvider ─► SharedEstate (one lock, one clock) ─► Estate
//!                        ├ catalog, rows, links: instances and associations      (reading)
//!                        ├ hint: which VMs a query can mean
//!                        └ methods: calls                                         (writing)
//! ```
//!
//! **Invariants.** A host shows only what is its own and its cluster's. Rights are checked before anything else. What is not
//! modelled is refused: a class ([`Coverage`]), a method, a parameter that would be ignored.
//!
//! **What it does not do.** No sockets ([`crate::wire`]); no events; no `Create`, `Delete`; `Put` only for the priority of a
//! cluster's group, which has no method.

mod access;
mod catalog;
mod embedded;
mod hint;
mod identity;
mod links;
mod methods;
mod rows;
mod shared;
mod texts;

use std::sync::Arc;

use wsman::cim::{CimInstance, CimPath, CimValue, ClassName, Namespace};
use wsman::message::{Association, AssociationQuery, Fault, FaultCode, hresult};
use wsman::schema::SchemaSet;
use wsman::server::{Caller, CimProvider, Invocation, Operation, not_found};
use wsman::wql::Select;

pub use access::{Role, Roles};
pub use catalog::Coverage;
pub use identity::{CIMV2, CLUSTER, VIRTUALIZATION};
pub use shared::{Pace, SharedEstate};
pub use texts::Language;

use self::hint::Hint;
use self::methods::{Call, Inputs, Refusal};
use self::rows::Scene;
use crate::estate::{Estate, GroupName, HostName, Switch};
use crate::schema::ClassTables;
use crate::{Error, Result};

/// What a host is to those who call it.
#[derive(Debug, Clone)]
pub struct ProviderOptions {
    /// Its display language.
    pub language: Language,
    /// Who may do what.
    pub roles: Roles,
}

/// One host of an estate, as CIM.
pub struct HostProvider {
    estate: Arc<SharedEstate>,
    host: HostName,
    tables: ClassTables,
    options: ProviderOptions,
}

impl HostProvider {
    /// A host of an estate.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    pub fn new(
        estate: Arc<SharedEstate>,
        host: &HostName,
        options: ProviderOptions,
    ) -> Result<Self> {
        let windows = estate.read(|it| it.host(host).map(|host| host.windows))?;
        Ok(Self {
            estate,
            host: host.clone(),
            tables: ClassTables::load(windows)?,
            options,
        })
    }

    /// The estate.
    pub fn estate(&self) -> &Arc<SharedEstate> {
        &self.estate
    }

    /// The host.
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// What the lab does with a class.
    pub fn coverage(class: &ClassName) -> Coverage {
        catalog::coverage(class.as_str())
    }

    /// Whether the lab answers a method of a class.
    pub fn has_method(class: &ClassName, method: &str) -> bool {
        methods::MODELLED
            .iter()
            .any(|it| *class == it.class && it.name == method)
    }

    /// Every method that is modelled, with its class.
    pub fn methods() -> impl Iterator<Item = (&'static str, &'static str)> {
        methods::MODELLED.iter().map(|it| (it.class, it.name))
    }

    fn look<T>(
        &self,
        ask: impl FnOnce(&Scene<'_>) -> std::result::Result<T, Fault>,
    ) -> std::result::Result<T, Fault> {
        self.estate.read(|estate| {
            let host = estate
                .live_host(&self.host)
                .map_err(|it| unavailable(&it))?;
            ask(&Scene {
                estate,
                host,
                language: self.options.language,
            })
        })
    }

    fn schemas(&self, namespace: &Namespace) -> std::result::Result<&Arc<SchemaSet>, Fault> {
        self.tables.namespace(namespace).ok_or_else(|| {
            Fault::new(FaultCode::DestinationUnreachable)
                .with_hresult(hresult::INVALID_NAMESPACE, "Invalid namespace")
        })
    }

    /// Makes an instance what this generation sends: properties that it does not have are left out; references carry their
    /// namespace unless the switch for it is kind.
    fn dress(&self, instance: &mut CimInstance, estate: &Estate) {
        let schema = self
            .tables
            .namespace(&instance.namespace)
            .and_then(|set| set.class(&instance.class));
        if let Some(schema) = schema {
            instance
                .properties
                .retain(|name, _| schema.properties.contains_key(name));
        }
        if !estate.switches().is_kind(Switch::NoNamespaceSelector) {
            instance.properties.values_mut().for_each(name_namespace);
        }
    }
}

fn unavailable(error: &Error) -> Fault {
    methods::fault_of(error)
}

fn name_namespace(value: &mut CimValue) {
    match value {
        CimValue::Reference(path) => {
            let namespace = path.namespace.to_string();
            path.keys
                .insert("__cimnamespace".to_owned(), CimValue::Text(namespace));
        }
        CimValue::Array(values) => values.iter_mut().for_each(name_namespace),
        _ => {}
    }
}

fn refused(class: &ClassName) -> Fault {
    Fault::new(FaultCode::UnsupportedFeature)
        .with_hresult(hresult::NOT_SUPPORTED, "Not supported")
        .because(format_args!("{class} is not modelled."))
}

impl CimProvider for HostProvider {
    fn schema(&self, namespace: &Namespace) -> Option<Arc<SchemaSet>> {
        let is_cluster = *namespace == *CLUSTER;
        let is_member = || self.estate.read(|it| it.cluster_of(&self.host).is_some());
        if is_cluster && !is_member() {
            return None;
        }
        self.tables.namespace(namespace).cloned()
    }

    fn server_name(&self) -> &str {
        self.host.as_str()
    }

    fn admit(&self, operation: &Operation<'_>, caller: &Caller) -> std::result::Result<(), Fault> {
        self.estate.on_request().map_err(|it| unavailable(&it))?;
        let namespace = match operation {
            Operation::Enumerate { namespace, .. } => *namespace,
            Operation::Get(path) | Operation::Put(path) | Operation::Invoke { path, .. } => {
                &path.namespace
            }
            // What goes on was allowed to begin.
            _ => return Ok(()),
        };
        self.options.roles.check(caller, namespace)?;
        if let Operation::Enumerate {
            query, association, ..
        } = operation
        {
            let asked = query.map(|_| Switch::WqlOnVirtualization);
            let asked = asked.or(association.map(|_| Switch::AssociationFilter));
            let takes = |switch| self.estate.read(|it| it.switches().is_kind(switch));
            if *namespace == *VIRTUALIZATION && asked.is_some_and(|switch| !takes(switch)) {
                return Err(Fault::new(FaultCode::CannotProcessFilter));
            }
        }
        Ok(())
    }

    fn instances(
        &self,
        namespace: &Namespace,
        class: &ClassName,
        query: Option<&Select>,
        _caller: &Caller,
    ) -> std::result::Result<Vec<CimInstance>, Fault> {
        let schemas = self.schemas(namespace)?;
        if catalog::coverage(class.as_str()) == Coverage::Refused {
            return Err(refused(class));
        }
        let mut hint = Hint::default();
        if let Some(query) = query {
            for property in Hint::PROPERTIES {
                if let Some(text) = query.demanded_text(property) {
                    hint.learn(property, text);
                }
            }
        }
        self.look(|scene| {
            let mut rows = Vec::new();
            for member in schemas.family(class) {
                if catalog::coverage(member.as_str()) == Coverage::Modelled {
                    let found = catalog::rows(scene, member.as_str(), &hint);
                    rows.extend(found.map_err(|it| unavailable(&it))?);
                }
            }
            for row in &mut rows {
                self.dress(row, scene.estate);
            }
            Ok(rows)
        })
    }

    fn get(&self, path: &CimPath, _caller: &Caller) -> std::result::Result<CimInstance, Fault> {
        if catalog::coverage(path.class.as_str()) == Coverage::Refused {
            return Err(refused(&path.class));
        }
        self.look(|scene| {
            let found = catalog::find(scene, path).map_err(|it| unavailable(&it))?;
            let mut found = found.ok_or_else(|| not_found(path))?;
            self.dress(&mut found, scene.estate);
            Ok(found)
        })
    }

    fn related(
        &self,
        query: &AssociationQuery,
        _caller: &Caller,
    ) -> std::result::Result<Vec<CimInstance>, Fault> {
        let schemas = self.schemas(&query.object.namespace)?;
        self.look(|scene| {
            let object = catalog::find(scene, &query.object).map_err(|it| unavailable(&it))?;
            if object.is_none() {
                return Err(not_found(&query.object));
            }
            let mut rows = Vec::new();
            for association in links::ALL {
                let class = ClassName::new(association.class);
                let is_known = schemas.class(&class).is_some();
                let is_wanted = query
                    .association_class
                    .as_ref()
                    .is_none_or(|wanted| schemas.is_a(&class, wanted));
                if is_known && is_wanted {
                    related_through(scene, schemas, association, query, &mut rows)
                        .map_err(|it| unavailable(&it))?;
                }
            }
            for row in &mut rows {
                self.dress(row, scene.estate);
            }
            Ok(rows)
        })
    }

    fn put(
        &self,
        path: &CimPath,
        instance: &CimInstance,
        caller: &Caller,
    ) -> std::result::Result<CimInstance, Fault> {
        if path.class != "MSCluster_ResourceGroup" {
            return Err(Fault::new(FaultCode::UnsupportedFeature)
                .because(format_args!("{} is read-only.", path.class)));
        }
        self.estate
            .write(|estate| put_group(estate, &self.host, path, instance))?;
        self.get(path, caller)
    }

    fn invoke(&self, invocation: &Invocation<'_>) -> std::result::Result<CimInstance, Fault> {
        let path = invocation.path;
        let schemas = self.schemas(&path.namespace)?;
        self.look(|scene| check_service(scene, path))?;
        let mut outcome = self.estate.write(|estate| {
            let mut call = Call {
                estate,
                host: self.host.clone(),
                schemas,
                language: self.options.language,
                target: path,
                inputs: Inputs::new(&invocation.inputs.properties),
            };
            match methods::run(&mut call, &invocation.method.name) {
                Ok(outcome) => Ok(outcome),
                Err(Refusal::Code(code)) => Ok(methods::Outcome::code(code)),
                Err(Refusal::Fault(fault)) => Err(*fault),
            }
        })?;
        let mut output = CimInstance::new(format!("{}_OUTPUT", invocation.method.name).as_str());
        if let Some(code) = outcome
            .return_value
            .filter(|_| invocation.method.returns.is_some())
        {
            output.set("ReturnValue", code);
        }
        for (name, value) in outcome.outputs.drain(..) {
            output.set(name, value);
        }
        let names_namespace = self
            .estate
            .read(|it| !it.switches().is_kind(Switch::NoNamespaceSelector));
        if names_namespace {
            output.properties.values_mut().for_each(name_namespace);
        }
        Ok(output)
    }
}

/// Changes of a group: its priority, which has no method.
fn put_group(
    estate: &mut Estate,
    host: &HostName,
    path: &CimPath,
    instance: &CimInstance,
) -> std::result::Result<(), Fault> {
    let read_only =
        || Fault::new(FaultCode::UnsupportedFeature).because("Only Priority can be put.");
    let name = GroupName::new(path.key("Name").unwrap_or_default());
    let cluster = estate.live_cluster(host).map_err(|it| unavailable(&it))?;
    let group = cluster.groups.get(&name).ok_or_else(|| not_found(path))?;
    let now = rows::cluster::group_row(group);
    let changed = methods::differences(instance, &now);
    if changed.iter().any(|it| it != "Priority") {
        return Err(read_only());
    }
    let priority = instance.u32("Priority").map_err(|_| read_only())?;
    estate
        .set_priority(host, &name, priority)
        .map_err(|it| unavailable(&it))
}

/// Whichever keys of a service were given must be its own.
fn check_service(scene: &Scene<'_>, path: &CimPath) -> std::result::Result<(), Fault> {
    let services = rows::systems::SERVICES;
    let Some(service) = services.iter().find(|it| path.class == it.class) else {
        return Ok(());
    };
    let row = rows::systems::service_row(scene, *service);
    if path.names(&row) {
        Ok(())
    } else {
        Err(not_found(path))
    }
}

fn related_through(
    scene: &Scene<'_>,
    schemas: &SchemaSet,
    association: &links::Association,
    query: &AssociationQuery,
    rows: &mut Vec<CimInstance>,
) -> Result<()> {
    let object = query.object.id();
    let is_role = |wanted: &Option<String>, role: &str| {
        wanted
            .as_ref()
            .is_none_or(|it| it.eq_ignore_ascii_case(role))
    };
    let is_result = |class: &ClassName| {
        query
            .result_class
            .as_ref()
            .is_none_or(|wanted| schemas.is_a(class, wanted))
    };
    for link in links::links(scene, association, Some(&query.object)) {
        let is_first = link.ends.0.id() == object;
        let (role, other_role, other) = if is_first {
            (association.roles.0, association.roles.1, &link.ends.1)
        } else {
            (association.roles.1, association.roles.0, &link.ends.0)
        };
        if !is_role(&query.role, role) || !is_role(&query.result_role, other_role) {
            continue;
        }
        match query.kind {
            Association::Associators if is_result(&other.class) => {
                rows.extend(catalog::find(scene, other)?);
            }
            Association::References if is_result(&ClassName::new(association.class)) => {
                rows.push(links::row_of(association, link));
            }
            Association::Associators | Association::References => {}
        }
    }
    Ok(())
}
