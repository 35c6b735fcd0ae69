//! The class tables of Windows Server, by generation.
//!
//! ```text
//!   2019.txt, 23h2.txt (made by `cargo xtask gen lab-schema`) ─┐
//!   overlays.txt (what other generations have less or more) ───┴─► ClassTables: one SchemaSet per namespace
//! ```
//!
//! Names, bases, types and the order of parameters are Microsoft's; where each class comes from stands in the tables
//! ([`ClassTables::origin`]). What a table does not have, the lab does not know.
//!
//! **What it does not do.** It says nothing of values, and nothing of which classes have instances: that is the provider's.

mod overlay;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use wsman::cim::{ClassName, Namespace};
use wsman::schema::SchemaSet;

use crate::estate::WindowsGeneration;
use crate::{Error, Result};
use overlay::Overlay;
use table::Table;

const SERVER_2019: &str = include_str!("../schema/2019.txt");
const SERVER_23H2: &str = include_str!("../schema/23h2.txt");
const OVERLAYS: &str = include_str!("../schema/overlays.txt");

/// The classes of one generation of Windows Server.
#[derive(Debug, Clone)]
pub struct ClassTables {
    generation: WindowsGeneration,
    namespaces: BTreeMap<Namespace, Arc<SchemaSet>>,
    origins: BTreeMap<(Namespace, ClassName), String>,
}

impl ClassTables {
    /// Reads the tables of a generation.
    ///
    /// # Errors
    /// `Invalid` when a table does not hold together: the tables are part of the program, a test reads them all.
    pub fn load(generation: WindowsGeneration) -> Result<Self> {
        let overlay = Overlay::of(OVERLAYS, generation.name())?;
        let mut table = Table::parse(text_of(&overlay.base)?)?;
        let other = Table::parse(SERVER_23H2)?;
        overlay.apply(&mut table, &other)?;
        let mut namespaces = BTreeMap::new();
        let mut origins = BTreeMap::new();
        for (name, classes) in table.namespaces {
            let namespace = Namespace::new(&name);
            let mut schemas = Vec::new();
            for class in classes {
                let key = (namespace.clone(), class.schema.name.clone());
                origins.insert(key, class.origin);
                schemas.push(class.schema);
            }
            let set = SchemaSet::new(&namespace, schemas)
                .map_err(|error| Error::invalid(format!("class tables of {name}: {error}")))?;
            namespaces.insert(namespace, Arc::new(set));
        }
        Ok(Self {
            generation,
            namespaces,
            origins,
        })
    }

    /// Whose tables these are.
    pub fn generation(&self) -> WindowsGeneration {
        self.generation
    }

    /// The classes of a namespace.
    pub fn namespace(&self, name: &Namespace) -> Option<&Arc<SchemaSet>> {
        self.namespaces.get(name)
    }

    /// The namespaces.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<SchemaSet>> {
        self.namespaces.values()
    }

    /// Where the table of a class comes from: file of the Go package, page of the documentation.
    pub fn origin(&self, namespace: &Namespace, class: &ClassName) -> Option<&str> {
        self.origins
            .get(&(namespace.clone(), class.clone()))
            .map(String::as_str)
    }
}

fn text_of(file: &str) -> Result<&'static str> {
    match file {
        "2019.txt" => Ok(SERVER_2019),
        "23h2.txt" => Ok(SERVER_23H2),
        _ => Err(Error::invalid(format!("overlays.txt names {file}"))),
    }
}
