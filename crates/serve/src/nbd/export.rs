//! What can be chosen from a server: disks by name.
//!
//! **Invariants.** Every name means one export. What is listed are the exports' own names; other names lead to them, too.

use std::collections::HashMap;
use std::sync::Arc;

use block::ReadAt;

use crate::{Error, ErrorKind, Result};

/// Longest name that the protocol allows, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 4096;

/// One disk that can be chosen.
pub struct Export {
    /// Its name.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// Its bytes.
    pub disk: Arc<dyn ReadAt>,
}

impl Export {
    /// A disk under a name.
    pub fn new(name: impl Into<String>, disk: Arc<dyn ReadAt>) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            disk,
        }
    }
}

/// All of a server's exports.
pub struct Exports {
    list: Vec<Arc<Export>>,
    names: HashMap<String, Arc<Export>>,
}

impl Exports {
    /// These exports, and no other names for them; a single one is also what a client gets that names none.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when there is none, when two have one name, or a name is longer than 4096 bytes.
    pub fn new(exports: Vec<Export>) -> Result<Self> {
        let list: Vec<Arc<Export>> = exports.into_iter().map(Arc::new).collect();
        let mut names = HashMap::new();
        for export in &list {
            if export.name.len() > NAME_BYTES_MAX {
                let what = format!("an export's name of {} bytes", export.name.len());
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            if names
                .insert(export.name.clone(), Arc::clone(export))
                .is_some()
            {
                let what = format!("two exports are named {:?}", export.name);
                return Err(Error::new(ErrorKind::Invalid, what));
            }
        }
        match list.as_slice() {
            [] => return Err(Error::new(ErrorKind::Invalid, "nothing to serve")),
            [only] => {
                names.insert(String::new(), Arc::clone(only));
            }
            _ => {}
        }
        Ok(Self { list, names })
    }

    /// Lets another name lead to an export, unless that name is taken.
    pub fn also_named(&mut self, other: &str, name: &str) {
        if let Some(export) = self.names.get(name).map(Arc::clone) {
            self.names.entry(other.to_owned()).or_insert(export);
        }
    }

    /// The export of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<Export>> {
        self.names.get(name)
    }

    /// All of them.
    pub fn list(&self) -> &[Arc<Export>] {
        &self.list
    }
}
