//! The list of classes to describe: `crates/lab/schema/classes.txt`.
//!
//! ```text
//!   namespace root/virtualization/v2 from root/virtualization/v2 documented desktop-src/HyperV_v2
//!   class Msvm_ComputerSystem
//!   key CIM_System CreationClassName Name         inherited by every class below CIM_System
//!   embedded MSCluster_Property                   a class that is never referred to
//!   type MSCluster_Cluster.Name datetime          where no source has the type
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// One namespace of the list.
#[derive(Debug, Default)]
pub(super) struct NamespaceList {
    /// As on the wire.
    pub name: String,
    /// Folder of the Go package below `server…`.
    pub package: String,
    /// Folder of the documentation's pages.
    pub documentation: Option<String>,
    /// Classes asked for; bases come by themselves.
    pub classes: Vec<String>,
    /// Class → its keys.
    pub keys: BTreeMap<String, Vec<String>>,
    /// Classes that are only ever embedded, never referred to.
    pub embedded: Vec<String>,
    /// `Class.Property` → type.
    pub types: BTreeMap<String, String>,
}

/// All namespaces.
#[derive(Debug, Default)]
pub(super) struct ClassList {
    pub namespaces: Vec<NamespaceList>,
}

impl ClassList {
    /// Reads the list.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut list = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            list.line(line)
                .with_context(|| format!("line {}: {line}", number.saturating_add(1)))?;
        }
        Ok(list)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["namespace", name, "from", package, rest @ ..] = words.as_slice() {
            let documentation = match rest {
                [] => None,
                ["documented", folder] => Some((*folder).to_owned()),
                _ => bail!("words behind the package"),
            };
            self.namespaces.push(NamespaceList {
                name: (*name).to_owned(),
                package: (*package).to_owned(),
                documentation,
                ..NamespaceList::default()
            });
            return Ok(());
        }
        let namespace = self.namespaces.last_mut().context("no namespace yet")?;
        match words.as_slice() {
            ["embedded", class] => namespace.embedded.push((*class).to_owned()),
            ["class", class] => namespace.classes.push((*class).to_owned()),
            ["key", class, keys @ ..] if !keys.is_empty() => {
                let keys = keys.iter().map(|key| (*key).to_owned()).collect();
                namespace.keys.insert((*class).to_owned(), keys);
            }
            ["type", property, type_name] => {
                namespace
                    .types
                    .insert((*property).to_owned(), (*type_name).to_owned());
            }
            _ => bail!("not understood"),
        }
        Ok(())
    }
}
